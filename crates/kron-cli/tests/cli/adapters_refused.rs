//! Adapters that are damaged, hostile, or not of the form s·A ⊗ (B·C): one sentence and exit code 1.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden::{File, Tensor, golden, kron, serialize};

/// A copy of a golden PEFT folder.
struct Peft(TempDir);

impl Peft {
    fn of(name: &str) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(golden().join("model_llama").join(name).join(file), dir.path().join(file))
                .expect("a copy");
        }
        Self(dir)
    }

    fn config(self, edit: impl FnOnce(&mut Value)) -> Self {
        let path = self.0.path().join("adapter_config.json");
        let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        std::fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
        self
    }

    fn tensors(self, edit: impl FnOnce(&mut File)) -> Self {
        let path = self.0.path().join("adapter_model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        let mut file = File::new();
        for (name, t) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            file.insert(
                name,
                Tensor { dtype: t.dtype(), shape: t.shape().to_vec(), bytes: t.data().to_vec() },
            );
        }
        edit(&mut file);
        std::fs::write(path, serialize(&file)).unwrap();
        self
    }

    fn bytes(self, edit: impl FnOnce(&mut Vec<u8>)) -> Self {
        let path = self.0.path().join("adapter_model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        edit(&mut bytes);
        std::fs::write(path, bytes).unwrap();
        self
    }

    /// Asserts that every command that reads refuses it and writes nothing.
    fn refused(self, says: &[&str]) {
        let place = TempDir::new().unwrap();
        let out = place.path().join("out");
        let (path, out_name) = (self.0.path().to_str().unwrap(), out.to_str().unwrap());
        for args in [vec!["convert", path, out_name], vec!["quantise", path, "--bits", "4"]] {
            refuse(&args, 1, says);
        }
        diagnosed(path, says);
        assert!(!out.exists());
    }
}

/// Asserts that `inspect` gives the same reason, whether the file can be looked at or not.
fn diagnosed(path: &str, says: &[&str]) {
    let run = kron().args(["inspect", path]).output().expect("the program runs");
    if !run.status.success() {
        return refuse(&["inspect", path], 1, says);
    }
    let text = String::from_utf8(run.stdout).expect("UTF-8");
    for part in says.iter().chain(&["not read as an adapter: ", "\nconvert, diff, quantise"]) {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

fn refuse(args: &[&str], code: i32, says: &[&str]) {
    let run = kron().args(args).output().expect("the program runs");
    let err = String::from_utf8(run.stderr).expect("UTF-8");
    assert_eq!((run.status.code(), run.stdout.len()), (Some(code), 0), "{args:?}: {err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.starts_with("error: ") && !err.contains("panicked"), "{err}");
    for part in says {
        assert!(err.contains(part), "{part:?} is not in {err}");
    }
}

/// A PEFT LoRA alone keeps the flag, and merge's check needs it.
#[test]
fn fan_in_fan_out_is_not_dropped() {
    let place = TempDir::new().unwrap();
    let out = place.path().join("out");
    let out = out.to_str().unwrap();
    for name in ["lora", "lokr"] {
        let folder = Peft::of(name).config(|config| config["fan_in_fan_out"] = true.into());
        let path = folder.0.path().to_str().unwrap();
        let says = ["fan_in_fan_out is true", "merge the adapter as it is"];
        for to in ["kron", "peft-lokr", "lycoris"] {
            refuse(&["convert", path, out, "--to", to], 1, &says);
        }
        refuse(&["convert", path, out, "--fit", "--a-out", "2", "--a-in", "2", "--rank", "2"], 1, &says);
        refuse(&["quantise", path, "--bits", "8", "--out", out], 1, &says);
        assert!(kron().args(["quantise", path, "--bits", "8"]).output().unwrap().status.success());
        assert!(kron().args(["inspect", path]).output().unwrap().status.success());
        assert!(!Path::new(out).exists());
    }
}

const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

#[test]
fn fields_of_the_configuration() {
    for (adapter, field, value, says) in [
        ("lokr", "peft_type", json!("LOHA"), "peft_type is \"LOHA\""),
        ("lokr", "peft_type", json!(null), "no peft_type"),
        ("lokr", "r", json!(null), "no r"),
        ("lokr", "r", json!(-1), "not an adapter's configuration"),
        ("lokr", "r", json!(0), "rank 0"),
        ("lokr", "r", json!(5), "rank 2, but adapter_config.json has r = 5"),
        ("lokr", "alpha", json!(null), "no alpha"),
        ("lokr", "alpha", json!(1e300), "alpha is inf"),
        ("lokr", "lora_alpha", json!(3), "has lora_alpha, but LoKr uses alpha"),
        ("lokr", "modules_to_save", json!(3), "not an adapter's configuration"),
        ("lokr", "rank_pattern", json!({"(": 3}), "not a regular expression"),
        ("lokr", "a_new_trick", json!(true), "a_new_trick is true, which is refused"),
        ("lora", "lora_alpha", json!(null), "no lora_alpha"),
        ("lora", "use_dora", json!(true), "use_dora is true"),
        ("lora", "lora_bias", json!(true), "lora_bias is true"),
        ("lora", "init_lora_weights", json!("pissa"), "changes the base weights"),
        ("lora", "layer_replication", json!([[0, 1]]), "layer_replication"),
        ("lora", "alora_invocation_tokens", json!([1, 2]), "alora_invocation_tokens"),
    ] {
        Peft::of(adapter).config(|config| config[field] = value).refused(&[says]);
    }
}

#[test]
fn tensors_that_are_no_factor() {
    for (adapter, name, says) in [
        ("lokr", "base_model.model.classifier.weight", "modules_to_save"),
        ("lokr", &format!("{Q}.lokr_t2")[..], "Tucker"),
        ("lokr", &format!("{Q}.dora_scale"), "DoRA"),
        ("lokr", &format!("{Q}.bias"), "biases"),
        ("lokr", "model.layers.0.self_attn.q_proj.lokr_w1", "a tensor occurs once"),
        (
            "lokr",
            "model.layers.0.self_attn.q_proj.lokr_w3",
            "not a factor of ΔW and lies in no module in modules_to_save, and",
        ),
        ("lora", &format!("{Q}.lora_magnitude_vector.weight"), "DoRA"),
        ("lora", "base_model.model.embed.lora_embedding_A", "embedding"),
        ("lora", &format!("{Q}.lora_B.bias"), "biases"),
    ] {
        let extra = Tensor::f32(&[2, 3], [1.0; 6]);
        Peft::of(adapter).tensors(|file| drop(file.insert(name.into(), extra))).refused(&[name, says]);
    }
}

#[test]
fn factors_that_are_wrong() {
    let w1 = format!("{Q}.lokr_w1");
    let w2a = format!("{Q}.lokr_w2_a");
    let set = |name: &str, tensor: Tensor| {
        let name = name.to_string();
        Peft::of("lokr").tensors(move |file| drop(file.insert(name, tensor)))
    };
    let values = |first: f32| Tensor::f32(&[6, 6], std::iter::once(first).chain([1.0; 35]));
    set(&w1, values(f32::NAN)).refused(&[&w1, "NaN", "finite"]);
    set(&w1, values(f32::INFINITY)).refused(&[&w1, "inf"]);
    set(&w1, Tensor::f32(&[6, 2, 3, 1], [1.0; 36])).refused(&[&w1, "2 dimensions", "convolutions"]);
    set(&w1, Tensor::f32(&[0, 6], [])).refused(&["every dimension of a factor is at least 1"]);
    set(&w2a, Tensor::f32(&[8, 3], [1.0; 24])).refused(&[&w2a, "3 columns", "2 rows"]);
    set(&w1, Tensor { dtype: Dtype::I32, shape: vec![6, 6], bytes: vec![0; 144] }).refused(&[&w1, "I32"]);
    let tenth = std::iter::repeat_n(0.1f64.to_le_bytes(), 36).flatten().collect();
    set(&w1, Tensor { dtype: Dtype::F64, shape: vec![6, 6], bytes: tenth })
        .refused(&[&w1, "float32 does not hold"]);
    Peft::of("lokr").tensors(|file| drop(file.remove(&w2a))).refused(&["needs either lokr_w2 or both"]);
    Peft::of("lokr")
        .tensors(|file| drop(file.insert(format!("{Q}.lokr_w2"), values(1.0))))
        .refused(&["needs either"]);
    Peft::of("lora")
        .tensors(|file| drop(file.remove(&format!("{Q}.lora_A.weight"))))
        .refused(&["needs both"]);
    // 40 kB of file, 400 million elements.
    Peft::of("lokr")
        .tensors(|file| {
            file.remove(&w1);
            file.insert(format!("{w1}_a"), Tensor::f32(&[20_000, 1], vec![1.0; 20_000]));
            file.insert(format!("{w1}_b"), Tensor::f32(&[1, 20_000], vec![1.0; 20_000]));
        })
        .refused(&["20000 × 20000, takes 1.6 GB"]);
    Peft::of("lokr").tensors(File::clear).refused(&["no tensors"]);
}

#[test]
fn files_that_are_damaged() {
    Peft::of("lokr").bytes(|bytes| bytes.truncate(bytes.len() - 1)).refused(&["cut short"]);
    Peft::of("lokr").bytes(|bytes| bytes.truncate(5)).refused(&["cut short"]);
    Peft::of("lokr").bytes(Vec::clear).refused(&["cut short"]);
    Peft::of("lokr")
        .bytes(|bytes| bytes[..8].copy_from_slice(&[0xff; 8]))
        .refused(&["header of 18446744073709551615 bytes"]);
    Peft::of("lokr").bytes(|bytes| bytes[8..40].fill(b'[')).refused(&["not safetensors JSON"]);
    for (file, says) in
        [("adapter_config.json", "adapter_config.json"), ("adapter_model.safetensors", "adapter_model")]
    {
        let folder = Peft::of("lokr");
        std::fs::remove_file(folder.0.path().join(file)).unwrap();
        folder.refused(&[says, "cannot be read"]);
    }
    let folder = Peft::of("lokr");
    std::fs::write(folder.0.path().join("adapter_config.json"), "{\"r\": ").unwrap();
    folder.refused(&["not an adapter's configuration"]);
    let folder = Peft::of("lokr");
    let weights = folder.0.path().join("adapter_model.safetensors");
    std::fs::rename(weights, folder.0.path().join("adapter_model.bin")).unwrap();
    folder.refused(&["pickle"]);
}

#[test]
fn files_that_are_no_adapter() {
    let base = golden().join("model_llama/base.safetensors");
    refuse(&["quantise", base.to_str().unwrap(), "--bits", "4"], 1, &["is not an adapter"]);
    diagnosed(
        base.to_str().unwrap(),
        &["model of ", "is not an adapter", "merge as BASE: accepted", "plan: accepted"],
    );
    refuse(&["inspect", "/no/such/path"], 1, &["/no/such/path"]);
    let dir = TempDir::new().unwrap();
    refuse(&["inspect", dir.path().to_str().unwrap()], 1, &["adapter_config.json"]);
}

#[test]
fn calls_that_are_wrong() {
    let lokr = golden().join("model_llama/lokr");
    let lokr = lokr.to_str().unwrap();
    for args in [
        vec!["export", lokr, "out"],
        vec!["convert", lokr],
        vec!["convert", lokr, "out", "--to", "gguf"],
        vec!["convert", lokr, "out", "--fit"],
        vec!["convert", lokr, "out", "--max-error", "1"],
        vec!["quantise", lokr, "--bits", "3"],
        vec!["quantise", lokr, "--bits", "4", "--block", "0"],
    ] {
        let run = kron().args(&args).output().unwrap();
        assert_eq!((run.status.code(), run.stdout.len()), (Some(2), 0), "{args:?}");
    }
    refuse(&["convert", lokr, "out", "--side", "in"], 2, &["--side", "--to lora"]);
    refuse(&["convert", lokr, "out", "--uniform"], 2, &["--uniform", "--to lora"]);
    let fit = ["--fit", "--a-out", "2", "--a-in", "2", "--rank", "2"];
    refuse(&[&["convert", lokr, "out"][..], &fit].concat(), 2, &["is not a LoRA"]);
    let lora = golden().join("model_llama/lora");
    let indivisible = ["--fit", "--a-out", "2", "--a-in", "5", "--rank", "2"];
    refuse(
        &[&["convert", lora.to_str().unwrap(), "out"][..], &indivisible].concat(),
        2,
        &["5 does not divide"],
    );
    assert!(!Path::new("out").exists());
}

#[test]
fn folders_that_do_not_exist_are_not_made() {
    let lokr = golden().join("model_llama/lokr");
    let lokr = lokr.to_str().unwrap();
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("missing/out");
    refuse(&["convert", "--to", "lora", lokr, out.to_str().unwrap()], 1, &["missing/out"]);
    refuse(&["convert", lokr, out.to_str().unwrap()], 1, &["missing/out"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// With A of 1 × 60000, one side is a LoRA of rank 2, the other of rank 120000.
#[test]
fn loras_beyond_memory_are_refused() {
    let long = 60_000;
    let folder = Peft::of("lokr").tensors(|file| {
        let row = Tensor::f32(&[1, long], vec![1.0; long]);
        file.insert(format!("{Q}.lokr_w1"), row);
    });
    let (path, out) = (folder.0.path().to_str().unwrap(), folder.0.path().join("out"));
    let call = ["convert", "--to", "lora", path, out.to_str().unwrap(), "--side", "in"];
    refuse(&call, 1, &["a LoRA of rank 120000", "takes 230 GB", "--max-size"]);
    assert!(kron().args(&call[..5]).output().unwrap().status.success());
}

/// Writes to /proc, which refuses even root; a folder's permissions would not.
#[cfg(target_os = "linux")]
#[test]
fn read_only_folders_are_refused() {
    let lokr = golden().join("model_llama/lokr");
    let lokr = lokr.to_str().unwrap();
    refuse(&["convert", lokr, "/proc/kron-out"], 1, &["/proc/kron-out"]);
    refuse(&["convert", "--to", "lora", lokr, "/proc/kron-out"], 1, &["/proc/kron-out"]);
}

#[test]
fn every_command_s_help_has_an_example_and_the_exit_codes() {
    let commands = kron().arg("--help").output().unwrap();
    let all = String::from_utf8(commands.stdout).unwrap();
    let commands = all.split("Commands:\n").nth(1).unwrap().lines().take_while(|line| !line.is_empty());
    let commands: Vec<_> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(commands.len(), 11, "{commands:?}");
    assert!(all.contains("  130  a second signal ended the run at once"), "{all}");
    for command in commands.into_iter().filter(|command| *command != "help") {
        let run = kron().args([command, "--help"]).output().unwrap();
        let text = String::from_utf8(run.stdout).unwrap();
        assert_eq!(run.status.code(), Some(0));
        assert!(text.contains("Example") && text.contains("  kron ") | text.contains(": kron "), "{text}");
        assert!(text.contains("Exit codes: "), "{text}");
        // All commands that write describe a signal and a full disk in the same words.
        let writes = ["combine", "convert", "inspect", "man", "merge", "quantise"].contains(&command);
        for says in [
            "the output cannot be written, or a signal stopped the run; 2 invalid arguments;\n",
            "130 a second signal ended the run at once.\n",
        ] {
            assert_eq!(text.contains(says), writes, "{command}: {text}");
        }
    }
}

#[test]
fn man_pages_and_completions_know_every_command() {
    let dir = TempDir::new().unwrap();
    assert!(kron().arg("man").arg(dir.path()).output().unwrap().status.success());
    for command in ["kron", "kron-convert", "kron-inspect", "kron-verify"] {
        let page = std::fs::read_to_string(dir.path().join(format!("{command}.1"))).unwrap();
        assert!(page.contains(".TH") && page.contains("Exit codes"), "{page}");
    }
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let run = kron().args(["completions", shell]).output().unwrap();
        assert!(
            run.status.success() && String::from_utf8(run.stdout).unwrap().contains("quantise"),
            "{shell}"
        );
    }
    refuse(&["man", "/no/such/folder"], 1, &["/no/such/folder"]);
}

/// Runs the lines of `kron --help` in a shell, unchanged.
#[cfg(unix)]
#[test]
fn man_pages_and_completions_are_installed_by_the_lines_of_the_help() {
    let help = kron().arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, rest) = help.split_once("Man pages and completions for one user:\n").expect("the lines");
    let lines: Vec<&str> = rest.lines().take_while(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    let home = TempDir::new().unwrap();
    let folder = Path::new(assert_cmd::cargo::cargo_bin!("kron")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut shell = std::process::Command::new("sh");
    shell.args(["-e", "-c", &lines.join("\n")]).env("HOME", home.path()).env("PATH", path);
    let run = shell.output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let share = home.path().join(".local/share");
    let page = std::fs::read_to_string(share.join("man/man1/kron-merge.1")).unwrap();
    assert!(page.contains("kron\\-merge") || page.contains("kron-merge"), "{page}");
    let script = std::fs::read_to_string(share.join("bash-completion/completions/kron")).unwrap();
    assert!(script.contains("complete") && script.contains("merge"), "{script}");
}
