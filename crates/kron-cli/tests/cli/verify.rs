//! `kron verify` on valid folders, with right and with wrong values.

use crate::golden::{Folder, Tensor, golden, kron, verify};
use kron_core::Isa;
use serde_json::{Value, json};

const PORTABLE: [&str; 4] = ["--isa", "portable", "--threads", "1"];

fn report(dir: &std::path::Path, args: &[&str]) -> (i32, Value) {
    let (code, out, err) = verify(dir, &[args, &["--json"]].concat());
    assert!(err.is_empty(), "{err}");
    (code, serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}")))
}

fn row<'a>(report: &'a Value, tensor: &str) -> &'a Value {
    let rows = report["cases"][0]["tensors"].as_array().expect("rows");
    rows.iter().find(|row| row["tensor"] == tensor).unwrap_or_else(|| panic!("no row {tensor}: {report}"))
}

#[test]
fn golden_folder_passes_on_every_instruction_set_with_the_same_bits_for_any_threads() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let mut cases = Vec::new();
        for threads in ["1", "2", "3"] {
            let (code, report) = report(&golden(), &["--isa", isa.name(), "--threads", threads]);
            assert_eq!((code, &report["ok"]), (0, &json!(true)), "{isa}, {threads} threads: {report:#}");
            assert_eq!((&report["isa"], &report["threads"].to_string()[..]), (&json!(isa.name()), threads));
            cases.push(report["cases"].clone());
        }
        assert!(cases.iter().all(|other| *other == cases[0]), "{isa}: the threads change the bits");
    }
}

#[test]
fn table_has_every_case_tensor_and_framework() {
    let (code, out, err) = verify(&golden(), &PORTABLE);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    insta::with_settings!({filters => vec![
        (r"\d\.\de-?\d+", "#"),
        (r"\d+ %", "# %"),
        (r" +", " "),
        (r"[─═]+", "──"),
    ]}, { insta::assert_snapshot!("golden", out) });
}

#[test]
fn help_documents_the_bounds_and_the_exit_codes() {
    for (name, args) in [("help", vec!["--help"]), ("help_verify", vec!["verify", "--help"])] {
        let run = kron().args(args).env("COLUMNS", "100").assert().success();
        insta::assert_snapshot!(name, String::from_utf8_lossy(&run.get_output().stdout));
    }
}

/// LyCORIS takes s = 1 where w2 is full. That error of 300 % must not become the bound.
#[test]
fn framework_that_computes_something_else_sets_no_bound() {
    let (code, report) = report(Folder::of("o5").path(), &PORTABLE);
    assert_eq!(code, 0, "{report:#}");
    for tensor in ["y", "dx", "delta", "dx_delta", "dA", "dM"] {
        let row = row(&report, tensor);
        assert!(row["frameworks"]["lyc"]["frobenius"].as_f64() > Some(1.0), "{row:#}");
        assert!(row["bound"]["frobenius"].as_f64() < Some(1e-6), "{row:#}");
    }
}

/// Recomputes the frameworks' errors, which the folder's author measured too.
#[test]
fn frameworks_errors_are_the_indexs() {
    for (name, dtype) in [("o1", "f32"), ("o4", "f32"), ("o6", "bf16")] {
        let mut folder = Folder::of(name);
        let listed = folder.case()["errors_vs_f64"].clone();
        let (_, report) = report(folder.path(), &PORTABLE);
        assert_eq!(report["cases"][0]["dtype"], dtype);
        for (tensor, stored) in [("y", "peft.y"), ("dx", "lyc.dx"), ("dB", "peft.grad.lokr_w2_a")] {
            let (framework, _) = stored.split_once('.').expect("a prefix");
            let got = &row(&report, tensor)["frameworks"][framework];
            for (ours, theirs) in [("frobenius", "rel_fro"), ("largest", "max_rel_to_max")] {
                let (got, want) = (got[ours].as_f64().unwrap(), listed[stored][theirs].as_f64().unwrap());
                // The index was measured against the reference before its rounding to float32.
                assert!((got - want).abs() < 0.2 * want, "{name} {stored} {ours}: {got} and {want}");
            }
        }
    }
}

/// A wrong reference moves the frameworks' errors, and with them the bound, as much as ours.
#[test]
fn wrong_reference_fails() {
    for (case, tensors) in [
        ("o1", vec!["ref.y", "ref.dx", "ref.delta", "ref.grad.A", "ref.grad.C", "ref.merged_sample"]),
        ("o4", vec!["ref.grad.A", "ref.grad.lokr_w1_a", "ref.grad.lokr_w1_b"]),
        ("o5", vec!["ref.grad.w2"]),
        ("o6", vec!["ref.y", "ref.dx_delta", "ref.grad.B", "ref.merged_sample"]),
    ] {
        for tensor in tensors {
            for change in [1.0 + 1e-5f32, 1.01, -1.0, 0.0, f32::NAN] {
                let folder = Folder::of(case).edit_tensors(|file| {
                    let tensor = file.get_mut(tensor).expect(tensor);
                    tensor.set(tensor.peak(), |v| v * change);
                });
                let (code, out, err) = verify(folder.path(), &PORTABLE);
                assert_eq!((code, err.as_str()), (1, ""), "{case} {tensor} × {change}: {out}");
                assert!(out.contains("FAIL"), "{out}");
            }
        }
    }
}

/// Every framework agrees with the reference; only our operand differs.
#[test]
fn wrong_operand_fails() {
    for (case, tensor) in [("o1", "lokr_w1"), ("o3", "lokr_w2_a"), ("o4", "lokr_w1_b"), ("o5", "lokr_w2")] {
        let folder = Folder::of(case).edit_tensors(|file| {
            let tensor = file.get_mut(tensor).expect(tensor);
            tensor.set(tensor.peak(), |v| v * 1.01);
        });
        let (code, report) = report(folder.path(), &PORTABLE);
        assert_eq!((code, &report["ok"]), (1, &json!(false)), "{case} {tensor}");
        assert_eq!(row(&report, "y")["verdict"], "out_of_bounds", "{case} {tensor}");
    }
}

#[test]
fn doubled_scale_fails_in_every_case() {
    for case in ["o1", "o2", "o3", "o4", "o5", "o6", "o7"] {
        let folder = Folder::of(case).edit_index(|case| {
            for key in ["alpha", "scale"] {
                case[key] = (2.0 * case[key].as_f64().expect("a number")).into();
            }
        });
        let (code, report) = report(folder.path(), &PORTABLE);
        assert_eq!(code, 1, "{case}");
        for tensor in ["y", "dx", "delta", "dx_delta", "dA"] {
            assert_eq!(row(&report, tensor)["verdict"], "out_of_bounds", "{case} {tensor}");
        }
    }
}

#[test]
fn frameworks_are_optional_and_may_have_any_name() {
    // The index still lists what was left out.
    let folder = Folder::of("o1").edit_tensors(|file| file.retain(|name, _| !name.starts_with("lyc")));
    let (code, left) = report(folder.path(), &PORTABLE);
    assert_eq!(code, 0, "{left:#}");
    assert_eq!(
        row(&left, "y")["frameworks"].as_object().map(|f| f.keys().collect::<Vec<_>>()),
        Some(vec![&"peft".to_string()])
    );

    let folder = Folder::of("o1").edit_tensors(|file| {
        *file = std::mem::take(file)
            .into_iter()
            .filter(|(name, _)| !name.starts_with("lyc"))
            .map(|(name, t)| (name.replace("peft.", "mine."), t))
            .collect();
    });
    let (code, renamed) = report(folder.path(), &PORTABLE);
    assert_eq!(code, 0, "{renamed:#}");
    assert_eq!(row(&renamed, "dB")["frameworks"]["mine"], row(&left, "dB")["frameworks"]["peft"]);

    // Alone, we are held against the plain computation.
    let none = Folder::of("o1")
        .edit_tensors(|file| file.retain(|name, _| !name.contains('.') || name.starts_with("ref.")));
    let (code, none) = report(none.path(), &PORTABLE);
    assert_eq!(code, 0, "{none:#}");
    let dc = row(&none, "dC");
    assert_eq!(dc["frameworks"], json!({}));
    let [bound, plain] = ["bound", "plain"].map(|name| dc[name]["frobenius"].as_f64().expect("a number"));
    assert!((bound / plain - 3.0).abs() < 1e-12, "{dc:#}");
}

#[test]
fn optional_references_are_compared_where_they_are_stored() {
    let folder = Folder::of("o2").unlisted().edit_tensors(|file| {
        for name in ["ref.delta", "ref.dx_delta", "ref.merged_sample"] {
            file.remove(name).expect(name);
        }
    });
    let (code, report) = report(folder.path(), &PORTABLE);
    let rows = report["cases"][0]["tensors"].as_array().expect("rows");
    let names: Vec<_> = rows.iter().filter_map(|row| row["tensor"].as_str()).collect();
    assert_eq!((code, names), (0, vec!["y", "dx", "dA", "dB", "dC"]));
}

#[test]
fn index_may_leave_out_what_the_file_says() {
    let folder = Folder::of("o2").edit_index(|case| {
        let keep = [
            "name",
            "in_features",
            "out_features",
            "a_out",
            "a_in",
            "r",
            "alpha",
            "w1",
            "w2",
            "bias",
            "dtype",
            "adapter_dtype",
        ];
        case.as_object_mut().unwrap().retain(|key, _| keep.contains(&key.as_str()));
    });
    let (code, report) = report(folder.path(), &PORTABLE);
    assert_eq!((code, &report["cases"][0]["rows"]), (0, &json!(10)), "{report:#}");
    let folder = folder.edit_index(|case| {
        case["scale"] = json!(1.0);
        case.as_object_mut().unwrap().remove("alpha");
    });
    assert_eq!(verify(folder.path(), &PORTABLE).0, 0);
}

#[test]
fn files_are_found_with_and_without_the_folders_in_front() {
    for (file, at) in [
        ("held/deep/case.safetensors", "case.safetensors"),
        ("held/deep/case.safetensors", "deep/case.safetensors"),
        ("held/deep/case.safetensors", "held/deep/case.safetensors"),
        ("./case.safetensors", "case.safetensors"),
    ] {
        let folder = Folder::of("o4");
        let to = folder.path().join(at);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::rename(folder.file(), to).unwrap();
        let folder = folder.edit_index(|case| case["file"] = file.into());
        assert_eq!(verify(folder.path(), &PORTABLE).0, 0, "{file} at {at}");
    }
}

/// A batch without rows is legal: no error, gradients of zero.
#[test]
fn no_rows_is_no_error() {
    let folder = Folder::of("o1").edit_tensors(|file| {
        file.retain(|name, _| !name.starts_with("lyc") && !name.starts_with("peft"));
        for (name, tensor) in file.iter_mut() {
            let rows = ["x", "dy", "ref.y", "ref.dx", "ref.delta", "ref.dx_delta"].contains(&name.as_str());
            if rows {
                *tensor = Tensor::f32(&[0, tensor.shape[1]], []);
            } else if name.starts_with("ref.grad") {
                *tensor = Tensor::f32(&tensor.shape, vec![0.0; tensor.bytes.len() / 4]);
            }
        }
    });
    let folder = folder.edit_index(|case| {
        (case["x_lead"], case["n_tokens"]) = (json!([0]), json!(0));
        case.as_object_mut().unwrap().remove("tensors");
    });
    let (code, report) = report(folder.path(), &PORTABLE);
    assert_eq!((code, &report["cases"][0]["rows"]), (0, &json!(0)), "{report:#}");
}

/// A closed pipe is neither an error nor a panic.
#[test]
fn closed_output_is_not_an_error() {
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("kron"))
        .args(["verify", "--json"])
        .arg(golden())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let run = child.wait_with_output().unwrap();
    assert_eq!((run.status.code(), String::from_utf8_lossy(&run.stderr).as_ref()), (Some(0), ""));
}
