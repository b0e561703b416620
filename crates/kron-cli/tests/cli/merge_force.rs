//! `kron merge --force` into folders with other files: replaced, removed and kept ones.

use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::golden::{File, serialize};
use crate::models::{adapter, assert_merge_fails, load, merge, names, sharded, tensor};

const INDEX: &str = "model.safetensors.index.json";

fn weight(name: &str) -> File {
    File::from([(format!("{name}.weight"), tensor(Dtype::F32, &[6, 10], 1))])
}

/// A loader prefers model.safetensors to an index, so that a stale one would be loaded.
#[test]
fn weights_of_another_model_do_not_stay_beside_the_merged_one() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, _) = adapter(
        dir.path(),
        &[("q", KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap())],
    );
    let shards = sharded(dir.path(), &[weight("q"), weight("k")], json!({}));
    let single = dir.path().join("single");
    std::fs::create_dir(&single).unwrap();
    std::fs::write(single.join("model.safetensors"), serialize(&weight("q"))).unwrap();
    for (base, stale, written) in [
        (&shards, &["model-00003-of-00003.safetensors", "model.safetensors"][..], 2),
        (&single, &["model-00001-of-00002.safetensors", INDEX], 0),
    ] {
        let out = dir.path().join("out");
        std::fs::create_dir_all(out.join("kept.safetensors")).unwrap();
        for name in stale.iter().chain(&["notes.txt", INDEX]) {
            std::fs::write(out.join(name), "of another model").unwrap();
        }
        let (code, text, err) = merge(base, &adapter, &out, &["--force", "--json"]);
        assert_eq!((code, err.as_str()), (0, ""));
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["notes"].as_array().map(Vec::len), Some(1), "{text}");
        assert!(report["notes"][0].as_str().unwrap().ends_with(&stale.join(", ")), "{text}");
        let left = names(&out);
        assert!(!stale.iter().any(|name| left.iter().any(|other| other == name)), "{left:?}");
        assert!(["kept.safetensors", "notes.txt"].iter().all(|name| left.iter().any(|o| o == name)));
        assert_eq!(left.iter().filter(|name| name.starts_with("model-0")).count(), written);
        assert_eq!(out.join(INDEX).exists(), base.join(INDEX).exists());
        std::fs::remove_dir_all(&out).unwrap();
    }
    // Without it all stays, and nothing is written.
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("model.safetensors"), "mine").unwrap();
    assert_merge_fails(merge(&shards, &adapter, &out, &[]), 2, &["is there already", "--force"]);
    assert_eq!(
        (names(&out), std::fs::read(out.join("model.safetensors")).unwrap()),
        (vec!["model.safetensors".into()], b"mine".to_vec())
    );
}

/// A resumed merge removes the files that the killed one was to remove.
#[test]
fn resuming_removes_what_was_to_be_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, _) = adapter(
        dir.path(),
        &[("q", KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap())],
    );
    let base = sharded(dir.path(), &[weight("q"), weight("k")], json!({}));
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    for name in ["model.safetensors", "other.safetensors"] {
        std::fs::write(out.join(name), "of another model").unwrap();
    }
    // A folder under the name of a shard stops it, and what is not the merge's own is still there.
    let shard = out.join("model-00002-of-00002.safetensors");
    std::fs::create_dir(&shard).unwrap();
    assert_merge_fails(merge(&base, &adapter, &out, &["--force"]), 1, &["model-00002-of-00002.safetensors"]);
    std::fs::remove_dir(&shard).unwrap();
    for name in ["model.safetensors", "other.safetensors"] {
        assert_eq!(std::fs::read(out.join(name)).unwrap(), b"of another model");
    }
    std::fs::write(out.join("new.safetensors"), "written since").unwrap();
    // Nor does a journal of another hand reach beyond the folder.
    let journal = std::fs::read_to_string(out.join(".kron-merge.json")).unwrap();
    let hostile = journal.replace("\"other.safetensors\"", "\"../adapter.safetensors\"");
    assert!(hostile != journal, "{journal}");
    std::fs::write(out.join(".kron-merge.json"), hostile).unwrap();
    assert_merge_fails(merge(&base, &adapter, &out, &["--resume"]), 1, &["../adapter.safetensors"]);
    std::fs::write(out.join(".kron-merge.json"), journal).unwrap();
    assert_eq!(merge(&base, &adapter, &out, &["--resume"]).0, 0);
    let left = names(&out);
    assert!(!left.iter().any(|name| name == "other.safetensors" || name == "model.safetensors"), "{left:?}");
    assert!(left.iter().any(|name| name == "new.safetensors"), "{left:?}");
    assert_eq!(load(&shard).len(), 1);
}

/// A merge that fails in its last shard has changed nothing but shards, and a card stays its owner's.
#[test]
fn other_files_are_replaced_when_the_weights_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, _) = adapter(
        dir.path(),
        &[("q", KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap())],
    );
    let base = sharded(dir.path(), &[weight("q"), weight("k")], json!({}));
    std::fs::write(base.join("README.md"), "the model's").unwrap();
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let theirs = ["README.md", "config.json", "tokenizer.json"];
    for name in theirs {
        std::fs::write(out.join(name), "mine").unwrap();
    }
    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    let shard = out.join("model-00002-of-00002.safetensors");
    std::fs::create_dir(&shard).unwrap();
    assert_merge_fails(merge(&base, &adapter, &out, &["--force"]), 1, &["model-00002-of-00002.safetensors"]);
    assert!(theirs.iter().all(|name| read(name) == b"mine"));
    std::fs::remove_dir(&shard).unwrap();
    let (code, text, err) = merge(&base, &adapter, &out, &["--resume"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(text.contains("has a README.md, which stays"), "{text}");
    assert_eq!(read("README.md"), b"mine");
    assert!(read("config.json") == b"{}" && read("tokenizer.json") != b"mine");
    // Elsewhere the model's own card is copied, and nothing is resumed that was not begun.
    let new = dir.path().join("new");
    assert_merge_fails(merge(&base, &adapter, &new, &["--resume"]), 2, &["no unfinished merge"]);
    assert!(!new.exists());
    assert_eq!(merge(&base, &adapter, &new, &[]).0, 0);
    assert_eq!(std::fs::read(new.join("README.md")).unwrap(), b"the model's");
}

#[test]
fn folders_of_an_adapter_are_not_merged_into() {
    let dir = tempfile::tempdir().unwrap();
    let (adapter, _) = adapter(
        dir.path(),
        &[("q", KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1).unwrap())],
    );
    let base = sharded(dir.path(), &[weight("q")], json!({}));
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("adapter_model.safetensors"), "mine").unwrap();
    assert_merge_fails(
        merge(&base, &adapter, &out, &["--force"]),
        2,
        &["adapter_model.safetensors, an adapter"],
    );
    assert_eq!(names(&out), ["adapter_model.safetensors"]);
}
