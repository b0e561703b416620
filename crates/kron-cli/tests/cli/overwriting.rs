//! No command overwrites a file that it reads, whatever output it is given.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use kron_core::{KronShape, LayerDims, Split};
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

use crate::adapters::{config, convert, report, run};
use crate::golden::{File, serialize};
use crate::models::{adapter, names, sharded, tensor};

/// A PEFT folder, an adapter file, and models of both kinds for them.
struct Place {
    dir: TempDir,
    lokr: PathBuf,
    file: PathBuf,
    base: PathBuf,
    shards: PathBuf,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (file, _) = adapter(
            dir.path(),
            &[(
                "q",
                KronShape::kron(LayerDims { d_out: 48, d_in: 48 }, Split { a_out: 6, a_in: 6 }, 2).unwrap(),
            )],
        );
        let lokr = dir.path().join("lokr");
        convert(&file, &lokr, "peft-lokr");
        let weight = |name: &str| File::from([(format!("{name}.weight"), tensor(Dtype::F32, &[48, 48], 1))]);
        let base = dir.path().join("single/base.safetensors");
        std::fs::create_dir(dir.path().join("single")).unwrap();
        std::fs::write(&base, serialize(&weight("q"))).unwrap();
        std::fs::write(base.with_file_name("config.json"), "{}").unwrap();
        let shards = sharded(dir.path(), &[weight("q"), weight("k")], json!({}));
        Self { dir, lokr, file, base, shards }
    }

    /// Returns every file and its bytes.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut folders = vec![self.dir.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for path in names(&folder).into_iter().map(|name| folder.join(name)) {
                match path.is_dir() {
                    true => folders.push(path),
                    false => files.push((path.clone(), std::fs::read(path).unwrap())),
                }
            }
        }
        files
    }
}

fn paths<'a>(words: &[&'a dyn AsRef<OsStr>]) -> Vec<&'a Path> {
    let path = |word: &&'a dyn AsRef<OsStr>| -> &'a Path { Path::new((*word).as_ref()) };
    words.iter().map(path).collect()
}

#[test]
fn no_output_takes_the_place_of_what_is_read() {
    let place = Place::new();
    let Place { dir, lokr, file, base, shards } = &place;
    let weights = lokr.join("adapter_model.safetensors");
    let (configuration, new) = (lokr.join("adapter_config.json"), lokr.join("new.safetensors"));
    let (shard, folder) = (shards.join("model-00001-of-00002.safetensors"), dir.path().to_path_buf());
    let detour = dir.path().join("lokr/../adapter.safetensors");
    let model_config = base.with_file_name("config.json");
    let before = place.files();
    for call in [
        paths(&[&"merge", base, lokr, &weights]),
        paths(&[&"merge", base, lokr, &configuration]),
        paths(&[&"merge", base, &weights, &configuration]),
        paths(&[&"merge", base, lokr, lokr]),
        paths(&[&"merge", base, lokr, &new]),
        paths(&[&"merge", base, file, file]),
        paths(&[&"merge", base, file, base]),
        paths(&[&"merge", base, file, &detour]),
        paths(&[&"merge", base, file, &model_config]),
        paths(&[&"merge", shards, file, shards]),
        paths(&[&"merge", shards, file, &shard]),
        paths(&[&"merge", shards, file, &folder]),
        paths(&[&"merge", shards, lokr, lokr]),
        paths(&[&"convert", &"--to", &"lora", lokr, lokr]),
        paths(&[&"convert", &"--to", &"lora", &weights, lokr]),
        paths(&[&"convert", &"--to", &"lora", file, &folder]),
        paths(&[&"convert", file, file]),
        paths(&[&"convert", file, &detour]),
        paths(&[&"convert", lokr, &weights]),
        paths(&[&"convert", lokr, &new]),
        paths(&[&"convert", file, base, &"--base", base]),
        paths(&[&"convert", file, &shard, &"--base", shards]),
        paths(&[&"quantise", file, &"--bits", &"8", &"--out", file]),
        paths(&[&"quantise", lokr, &"--bits", &"8", &"--out", &weights]),
        paths(&[&"inspect", file, &"--html", file]),
        paths(&[&"inspect", &weights, &"--html", &configuration]),
    ] {
        let words: Vec<&dyn AsRef<OsStr>> = call.iter().map(|word| word as _).collect();
        let (code, out, err) = run(&[&words[..], &[&"--force" as &dyn AsRef<OsStr>]].concat());
        assert_eq!((code, out.as_str()), (2, ""), "{call:?}: {err}");
        assert!(err.contains("which is read") && err.lines().count() == 1, "{call:?}: {err}");
        assert!(place.files() == before, "{call:?}");
    }
}

#[cfg(unix)]
#[test]
fn links_are_followed() {
    let place = Place::new();
    let Place { dir, lokr, file, base, shards } = &place;
    let link = |name: &str, to: &Path| {
        let path = dir.path().join(name);
        std::os::unix::fs::symlink(to, &path).unwrap();
        path
    };
    let (to_file, to_lokr) = (link("to_file", file), link("to_lokr", lokr));
    // As the cache of a hub has it: a folder of links into another.
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let blob = dir.path().join("single/model.safetensors");
    std::fs::rename(base, &blob).unwrap();
    link("model/model.safetensors", &blob);
    let single = dir.path().join("single");
    // A PEFT folder whose weights are a link.
    let linked = dir.path().join("linked");
    std::fs::create_dir(&linked).unwrap();
    std::fs::copy(lokr.join("adapter_config.json"), linked.join("adapter_config.json")).unwrap();
    let weights = dir.path().join("single/weights.safetensors");
    std::fs::copy(lokr.join("adapter_model.safetensors"), &weights).unwrap();
    link("linked/adapter_model.safetensors", &weights);
    let before = place.files();
    for call in [
        paths(&[&"convert", &linked, &weights]),
        paths(&[&"merge", &blob, &linked, &weights]),
        paths(&[&"convert", file, &blob, &"--base", &model]),
        paths(&[&"convert", file, &to_file]),
        paths(&[&"convert", &"--to", &"lora", lokr, &to_lokr]),
        paths(&[&"convert", &"--to", &"lora", &to_lokr, lokr]),
        paths(&[&"merge", &model, file, &single]),
        paths(&[&"merge", shards, &to_lokr, lokr]),
    ] {
        let words: Vec<&dyn AsRef<OsStr>> = call.iter().map(|word| word as _).collect();
        let (code, _, err) = run(&[&words[..], &[&"--force" as &dyn AsRef<OsStr>]].concat());
        assert!(code == 2 && err.contains("which is read"), "{call:?}: {err}");
        assert!(place.files() == before, "{call:?}");
    }
}

/// A second name of an input is that input: a hard link, and a folder that is mounted twice.
#[cfg(target_os = "linux")]
#[test]
fn one_file_under_two_names_is_one() {
    let place = Place::new();
    let Place { dir, lokr, file, base, shards } = &place;
    let hard = |name: &str, to: &Path| {
        let path = dir.path().join(name);
        std::fs::hard_link(to, &path).unwrap();
        path
    };
    let (same_file, same_base) = (hard("same_file", file), hard("same_base", base));
    let weights = hard("same_weights", &lokr.join("adapter_model.safetensors"));
    let before = place.files();
    for call in [
        paths(&[&"convert", file, &same_file]),
        paths(&[&"quantise", file, &"--bits", &"8", &"--out", &same_file]),
        paths(&[&"quantise", lokr, &"--bits", &"8", &"--out", &weights]),
        paths(&[&"inspect", file, &"--html", &same_file]),
        paths(&[&"merge", base, file, &same_base]),
        paths(&[&"merge", base, file, &same_file]),
        paths(&[&"convert", file, &same_base, &"--base", base]),
    ] {
        let words: Vec<&dyn AsRef<OsStr>> = call.iter().map(|word| word as _).collect();
        let (code, _, err) = run(&[&words[..], &[&"--force" as &dyn AsRef<OsStr>]].concat());
        assert!(code == 2 && err.contains("which is read"), "{call:?}: {err}");
        assert!(place.files() == before, "{call:?}");
    }
    // One volume of a container under two names.
    let mounted = dir.path().join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    for (call, source, out) in [
        (&["merge"][..], shards, "mounted"),
        (&["merge"], shards, "mounted/.."),
        (&["convert", "--to", "lora"], lokr, "mounted"),
    ] {
        let script = "mount --bind \"$1\" \"$2\" && shift 2 && exec \"$@\"";
        let mut command = std::process::Command::new("unshare");
        command.args(["-rm", "sh", "-c", script, "sh"]).args([source, &mounted]);
        command.arg(assert_cmd::cargo::cargo_bin!("kron")).args(call).arg(source);
        command.args((call[0] == "merge").then_some(file)).arg(dir.path().join(out)).arg("--force");
        let Ok(run) = command.output() else { return eprintln!("skipped: no program unshare") };
        let err = String::from_utf8_lossy(&run.stderr);
        if err.contains("unshare") || err.contains("mount") && !err.contains("error:") {
            return eprintln!("skipped: {err}");
        }
        assert!(run.status.code() == Some(2) && err.contains("which is read"), "{call:?} {out}: {err}");
        assert!(place.files() == before, "{call:?} {out}");
    }
}

/// Outputs beside the inputs, or below them, overwrite no input.
#[test]
fn places_beside_the_inputs_are_fine() {
    let place = Place::new();
    let Place { dir, lokr, file, base, shards } = &place;
    let [merged, sharded, lora, below, page, rounded] =
        ["merged", "sharded", "lora", "lokr/lora", "lokr/page.html", "lokr/rounded"]
            .map(|name| dir.path().join(name));
    report(&[&"merge", base, lokr, &merged]);
    report(&[&"merge", shards, lokr, &sharded]);
    report(&[&"convert", &"--to", &"lora", lokr, &lora]);
    report(&[&"convert", &"--to", &"lora", lokr, &below]);
    report(&[&"inspect", lokr, &"--html", &page]);
    report(&[&"quantise", lokr, &"--bits", &"8", &"--out", &rounded]);
    report(&[&"convert", file, &dir.path().join("single/out.safetensors")]);
    assert_eq!(config(&lora), config(&below));
    assert_eq!(names(&sharded), names(shards));
}
