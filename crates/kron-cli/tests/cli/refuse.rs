//! `kron verify` on invalid folders: one sentence, exit code 2, nothing on the standard output.

use std::path::Path;

use crate::golden::{Folder, Tensor, assert_refused, golden, kron, serialize, verify};
use kron_cli::verify::{Case, Index};
use safetensors::Dtype;
use serde_json::json;

#[test]
fn folders() {
    let empty = tempfile::tempdir().unwrap();
    assert_refused(&empty.path().join("nowhere"), &["nowhere", "not a folder"]);
    assert_refused(&golden().join("index.json"), &["index.json", "not a folder"]);
    assert_refused(empty.path(), &["index.json", "has no index.json"]);
    std::fs::create_dir(empty.path().join("index.json")).unwrap();
    assert_refused(empty.path(), &["index.json", "not a regular file"]);
    // A model's folder is not a folder of cases.
    assert_refused(&golden().join("model_llama"), &["index.json", "cases"]);
}

#[cfg(unix)]
#[test]
fn endless_files() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("index.json")).unwrap();
    assert_refused(dir.path(), &["not a regular file"]);
    let dir = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create(dir.path().join("index.json")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    assert_refused(dir.path(), &["1099511627776 bytes", "limit"]);
    let folder = Folder::of("o4").unlisted();
    std::fs::File::create(folder.file()).unwrap().set_len(1 << 40).unwrap();
    assert_refused(folder.path(), &["not safetensors JSON"]);
    let folder =
        Folder::of("o4").unlisted().edit_bytes(|b| b[..8].copy_from_slice(&(1u64 << 39).to_le_bytes()));
    std::fs::File::options().write(true).open(folder.file()).unwrap().set_len(1 << 40).unwrap();
    assert_refused(folder.path(), &["header of 549755813888 bytes", "limit"]);
}

#[test]
fn indexes() {
    let dir = tempfile::tempdir().unwrap();
    let nested = "[".repeat(100_000);
    for (text, says) in [
        ("", "EOF"),
        ("{\"cases\": [", "EOF"),
        ("not JSON", "expected"),
        (&nested, "not an index"),
        ("{}", "missing field `cases`"),
        ("{\"cases\": {}}", "invalid type"),
        ("{\"cases\": [{}]}", "missing field"),
        ("{\"cases\": []}", "0 cases"),
        ("\u{0}\u{1}", "expected"),
    ] {
        std::fs::write(dir.path().join("index.json"), text).unwrap();
        assert_refused(dir.path(), &["index.json", says]);
    }
}

#[test]
fn entries() {
    let max = u64::MAX;
    for (key, value, says) in [
        ("dtype", json!("float64"), vec!["unknown variant `float64`", "`bfloat16`"]),
        ("adapter_dtype", json!("int8"), vec!["int8", "`float16`"]),
        ("w1", json!("tucker"), vec!["tucker", "`decomposed`"]),
        ("in_features", json!(-1), vec!["-1", "usize"]),
        ("in_features", json!(0), vec!["d_in is 0", "at least 1"]),
        ("in_features", json!(385), vec!["a_in = 16", "385"]),
        ("out_features", json!(max), vec!["case o1"]),
        ("a_out", json!(5), vec!["a_out = 5", "1536"]),
        ("a_in", json!(0), vec!["a_in is 0"]),
        ("m_out", json!(47), vec!["m_out is 47", "48"]),
        ("m_in", json!(max), vec!["m_in", "24"]),
        ("r", json!(0), vec!["is 0", "at least 1"]),
        ("r", json!(max), vec!["case o1"]),
        ("scale", json!(4.0), vec!["scale is 4", "alpha / r is 2"]),
        ("scale", json!(null), vec![]),
        ("alpha", json!(32), vec!["scale is 2", "alpha / r is 4"]),
        ("alpha", json!("big"), vec!["big"]),
        ("x_lead", json!([3, 3]), vec!["[9, 384]", "x_lead is [3, 3]"]),
        ("n_tokens", json!(8), vec!["9 tokens", "n_tokens is 8"]),
        ("file", json!("gone.safetensors"), vec!["gone.safetensors", "no such file"]),
        ("file", json!("../o1.safetensors"), vec!["../o1.safetensors", "inside the folder"]),
        ("file", json!("/etc/passwd"), vec!["/etc/passwd", "inside the folder"]),
        ("file", json!(""), vec!["no such file"]),
        ("bytes", json!(574_761), vec!["574760 bytes", "574761"]),
        ("sha256", json!("00ff"), vec!["sha256", "00ff"]),
    ] {
        let folder = Folder::of("o1").edit_index(|case| case[key] = value.clone());
        if says.is_empty() {
            assert_eq!(verify(folder.path(), &[]).0, 0, "{key}: null is as good as absent");
        } else {
            assert_refused(folder.path(), &says);
        }
    }
    let folder = Folder::of("o1").edit_index(|case| {
        (case["alpha"], case["scale"]) = (json!(1e300), json!(1.25e299));
    });
    assert_refused(folder.path(), &["scale is inf", "finite"]);
    let folder = Folder::of("o1").edit_index(|case| {
        (case["alpha"], case["scale"]) = (json!(null), json!(null));
    });
    assert_refused(folder.path(), &["neither scale nor alpha"]);
}

#[test]
fn damaged_files() {
    for len in [0, 1, 7, 8, 9, 100, 2000, 5000, 69_000, 69_935] {
        let folder = Folder::of("o4").unlisted().edit_bytes(|bytes| bytes.truncate(len));
        assert_refused(folder.path(), &["cut short"]);
        // The index's length and checksum do not change the sentence.
        let folder = Folder::of("o4").edit_bytes(|bytes| bytes.truncate(len));
        assert_refused(folder.path(), &["cut short"]);
    }
    let longer = Folder::of("o4").unlisted().edit_bytes(|bytes| bytes.push(0));
    assert_refused(longer.path(), &["is damaged: its tensors end at"]);
    let flipped = Folder::of("o4").edit_bytes(|bytes| *bytes.last_mut().unwrap() ^= 1);
    assert_refused(flipped.path(), &["sha256", "altered"]);
}

#[test]
fn hostile_headers() {
    let max = u64::MAX;
    let bomb = format!("{{\"__metadata__\":{{\"a\":\"{}\"}}}}", "b".repeat(1 << 20));
    for (header, says) in [
        ("", "not safetensors JSON"),
        ("[]", "not safetensors JSON"),
        ("{\"x\":1}", "not safetensors JSON"),
        ("{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", "lies at 4..0"),
        ("{\"x\":{\"dtype\":\"F99\",\"shape\":[0],\"data_offsets\":[0,0]}}", "not safetensors JSON"),
        ("{\"x\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,0]}}", "not safetensors JSON"),
        (&bomb, "no tensor"),
        (&"{\"x\":".repeat(10_000), "not safetensors JSON"),
        (
            &format!("{{\"x\":{{\"dtype\":\"F32\",\"shape\":[{max},{max}],\"data_offsets\":[0,0]}}}}"),
            "breaks safetensors' rules",
        ),
        (
            &format!(
                "{{\"x\":{{\"dtype\":\"U8\",\"shape\":[{h}],\"data_offsets\":[0,{h}]}},\
                 \"y\":{{\"dtype\":\"U8\",\"shape\":[{h}],\"data_offsets\":[{h},{}]}}}}",
                max - 1,
                h = max / 2
            ),
            "cut short",
        ),
    ] {
        let folder = Folder::of("o4").unlisted().edit_bytes(|bytes| {
            *bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        });
        assert_refused(folder.path(), &[says]);
    }
    for len in [max, max - 8, 1 << 40, 100_000_001] {
        let folder = Folder::of("o4").unlisted().edit_bytes(|b| b[..8].copy_from_slice(&len.to_le_bytes()));
        assert_refused(folder.path(), &["header of", &len.to_string()]);
    }
}

#[test]
fn missing_tensors() {
    for (case, names) in [
        (
            "o1",
            vec![
                "x",
                "dy",
                "lokr_w1",
                "lokr_w2_a",
                "lokr_w2_b",
                "ref.y",
                "ref.dx",
                "ref.grad.A",
                "ref.grad.B",
            ],
        ),
        ("o4", vec!["lokr_w1_a", "lokr_w1_b", "ref.grad.lokr_w1_a", "ref.grad.lokr_w1_b", "ref.grad.A"]),
        ("o5", vec!["lokr_w2", "ref.grad.w2"]),
    ] {
        for name in names {
            let folder = Folder::of(case).edit_tensors(|file| drop(file.remove(name).expect(name)));
            assert_refused(folder.path(), &["no tensor", name]);
            assert_refused(folder.unlisted().path(), &["no tensor", name]);
        }
    }
    // What the index lists has to be there, unless a framework wrote it.
    let folder = Folder::of("o1").edit_tensors(|file| drop(file.remove("ref.delta")));
    assert_refused(folder.path(), &["no tensor ref.delta"]);
}

#[test]
fn wrong_dtypes_and_shapes() {
    for (name, dtype, says) in [
        ("x", Dtype::I32, "int32"),
        ("dy", Dtype::U32, "u32"),
        ("lokr_w1", Dtype::I32, "float32"),
        ("ref.y", Dtype::I32, "float32"),
        ("peft.y", Dtype::I32, "F16, BF16, F32 or F64"),
    ] {
        let folder = Folder::of("o1").edit_tensors(|file| file.get_mut(name).expect(name).dtype = dtype);
        assert_refused(folder.path(), &[name, "index lists float32"]);
        assert_refused(folder.unlisted().path(), &[name, says]);
    }
    for name in ["x", "dy", "lokr_w1", "lokr_w2_a", "lokr_w2_b", "ref.dx", "ref.grad.C", "peft.grad.lokr_w1"]
    {
        let folder = Folder::of("o1").edit_tensors(|file| file.get_mut(name).expect(name).shape.reverse());
        assert_refused(folder.path(), &[name, "index lists"]);
        assert_refused(folder.unlisted().path(), &[name, "but"]);
        let flat = Folder::of("o1").unlisted().edit_tensors(|file| {
            let tensor = file.get_mut(name).expect(name);
            tensor.shape = vec![tensor.shape.iter().product()];
        });
        assert_refused(flat.path(), &[name, "but"]);
    }
    // The dtype is the index's to say.
    let folder = Folder::of("o1").unlisted().edit_index(|case| case["dtype"] = "bfloat16".into());
    assert_refused(folder.path(), &["x is float32", "bfloat16"]);
    let folder = Folder::of("o6").unlisted().edit_index(|case| case["adapter_dtype"] = "bfloat16".into());
    assert_refused(folder.path(), &["lokr_w1 is float32", "bfloat16"]);
    let folder = Folder::of("o4").unlisted().edit_tensors(|file| {
        file.insert("lokr_w1_a".into(), Tensor::f32(&[6, 0], []));
    });
    assert_refused(folder.path(), &["lokr_w1_b", "[0, 10]"]);
}

/// Takes factors of a few megabytes whose T would take terabytes.
#[test]
fn factors_that_multiply_beyond_all_memory() {
    let n = 1 << 17;
    let folder = Folder::of("o1").unlisted().edit_index(|case| {
        for (key, value) in [("in_features", n), ("a_in", n), ("m_in", 1), ("r", n)] {
            case[key] = value.into();
        }
        for (key, value) in [("out_features", 1), ("a_out", 1), ("m_out", 1)] {
            case[key] = value.into();
        }
        (case["scale"], case["x_lead"], case["n_tokens"]) = (json!(null), json!([1]), json!(1));
    });
    let zeros = |rows: usize, cols: usize| Tensor::f32(&[rows, cols], vec![0.0; rows * cols]);
    let file = [
        ("x", zeros(1, n)),
        ("dy", zeros(1, 1)),
        ("lokr_w1", zeros(1, n)),
        ("lokr_w2_a", zeros(1, n)),
        ("lokr_w2_b", zeros(n, 1)),
    ];
    let file = file.into_iter().map(|(name, t)| (name.to_string(), t)).collect();
    std::fs::write(folder.file(), serialize(&file)).unwrap();
    assert_refused(folder.path(), &["limit", "131072"]);
}

/// The second case is invalid, so that the first is not printed either.
#[test]
fn one_bad_case_silences_all() {
    let mut folder = Folder::of("o4");
    let mut second = folder.case().clone();
    second["name"] = "second".into();
    second["file"] = "second.safetensors".into();
    folder.index["cases"].as_array_mut().unwrap().push(second);
    let folder = folder.edit_index(|_| {});
    assert_refused(folder.path(), &["case second", "no such file"]);
}

#[test]
fn calls() {
    let golden = golden();
    for (args, says) in [
        (vec!["--threads", "0"], "0 is not in 1..=1024"),
        (vec!["--threads", "many"], "many"),
        (vec!["--isa", "neon"], "not one of portable, avx2, avx512, avx512bf16"),
        (vec!["--fast"], "--fast"),
    ] {
        let (code, out, err) = verify(&golden, &args);
        assert_eq!((code, out.as_str()), (2, ""), "{err}");
        assert!(err.contains(says), "{err}");
    }
    let none = kron().arg("verify").output().unwrap();
    assert_eq!(none.status.code(), Some(2));
}

/// Reading returns for any bytes: flips, cuts and copies of pieces, in the index and in the header.
#[test]
fn no_bytes_make_the_reader_panic() {
    let folder = Folder::of("o4").unlisted();
    let index = std::fs::read(folder.path().join("index.json")).unwrap();
    let file = std::fs::read(folder.file()).unwrap();
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let mut random = 0x243f_6a88_85a3_08d3u64;
    let mut next = move |below: usize| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (random >> 33) as usize % below
    };
    let mut refused = 0;
    for round in 0..2000 {
        let (target, whole, reach) = if round % 2 == 0 {
            (folder.path().join("index.json"), &index, index.len())
        } else {
            (folder.file(), &file, header)
        };
        let mut bytes = whole.clone();
        for _ in 0..1 + next(3) {
            let at = next(reach);
            match next(4) {
                0 => bytes[at] ^= 1 << next(8),
                1 => bytes[at] = b"0123456789-{}[]\",:eE"[next(20)],
                2 => bytes.copy_within(next(reach)..reach, 0),
                _ => bytes.truncate(at.max(reach / 2)),
            }
            bytes.resize(whole.len(), b' ');
        }
        std::fs::write(&target, &bytes).unwrap();
        refused += usize::from(read(folder.path()).is_err());
        std::fs::write(&target, whole).unwrap();
    }
    assert!(read(folder.path()).is_ok(), "the folder is whole again");
    assert!(refused > 1000, "only {refused} of 2000 mutations were refused");
}

fn read(dir: &Path) -> kron_cli::Result<()> {
    Index::read(dir)?.cases.iter().try_for_each(|entry| Case::read(dir, entry).map(drop))
}
