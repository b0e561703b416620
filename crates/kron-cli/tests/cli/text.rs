//! Text output of each command on the golden adapters.

use std::path::Path;

use crate::golden::{golden, kron};

/// Returns the output of `kron` in the repository's root; `OUT` in the arguments is a temporary path.
fn text(args: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let out = out.to_str().unwrap();
    let words = args.split_whitespace().map(|word| if word == "OUT" { out } else { word });
    let root = golden().join("../..");
    let run = kron().current_dir(root).args(words).output().unwrap();
    assert!(run.status.success() && run.stderr.is_empty(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(args.contains("OUT"), Path::new(out).exists());
    // The tables do not depend on the length of the path.
    String::from_utf8(run.stdout).unwrap().replace(out, "OUT")
}

#[test]
fn reports() {
    let model = "tests/golden/model_llama";
    for (name, args) in [
        ("inspect", format!("inspect {model}/lokr_mix")),
        ("convert", format!("convert {model}/lokr_mix OUT")),
        ("convert_lora", format!("convert {model}/lokr OUT --to lora")),
        ("fit", format!("convert {model}/lora OUT --fit --a-out 2 --a-in 2 --rank 8 --max-error 1")),
        ("diff", format!("diff {model}/lokr {model}/lora")),
        ("convert_uniform", format!("convert {model}/lora_rs OUT --to lora --uniform")),
        ("quantise", format!("quantise {model}/lokr --bits 4 --block 32")),
        ("merge", format!("merge {model}/base.safetensors {model}/lokr_mix OUT")),
    ] {
        insta::assert_snapshot!(name, text(&args));
    }
    // The older name of the conversion prints the same.
    insta::assert_snapshot!("convert_uniform", text(&format!("export --lora {model}/lora_rs OUT --uniform")));
}
