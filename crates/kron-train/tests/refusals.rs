//! Errors name the file, the line, the value and the rule.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use kron_train::compute::{Device, Precision};
use kron_train::config::{Method, Task};
use kron_train::data::{Dataset, Tokenizer};
use kron_train::model::{Files, Weights};
use kron_train::run::{OutputFolder, Stop, run};
use kron_train::{Config, Error, Progress};

fn dataset(train: &str, test: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let put = |name: &str, text: &str| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let mut config = common::config(Method::Head);
    config.data.train = put("train.jsonl", train);
    config.data.validation = Some(put("test.jsonl", test));
    let tokenizer = Tokenizer::read(&common::data("tok512.bin")).expect("a tokenizer");
    Dataset::read(&config, &tokenizer).expect_err("refused").to_string()
}

#[test]
fn lines_are_named_by_their_number() {
    let good = "{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"b\", \"label\": 7}\n";
    let cases = [
        ("", good, "train.jsonl: has no line"),
        ("\n \r\n", good, "train.jsonl: has no line"),
        ("{\"text\": \"a\", \"label\": \"x\"}\n\n{", good, "train.jsonl: line 3 is malformed"),
        ("\u{feff}{\"text\": \"a\", \"label\": \"x\"}", good, "begins with a byte order mark"),
        (
            "{\"text\": \"a\", \"label\": true}\n",
            good,
            "the label is true, but a label is a string or a whole number",
        ),
        ("{\"text\": \"a\", \"label\": 1.5}\n", good, "the label is 1.5, but"),
        ("{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"a\"", good, "train.jsonl: line 2 is malformed"),
        ("{\"text\": \"a\", \"lable\": \"x\"}\n", good, "line 1 is malformed: missing field `label`"),
        ("{\"text\": \" \", \"label\": \"x\"}\n", good, "line 1 has an empty text"),
        (
            good,
            "{\"text\": \"a\", \"label\": \"7\"}\n{\"text\": \"a\", \"label\": \"z\"}\n",
            "test.jsonl: line 2 has label \"z\"",
        ),
    ];
    for (train, test, want) in cases {
        let got = dataset(train, test);
        assert!(got.contains(want), "{got}\nwithout\n{want}");
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let files = Files::find(&common::data("stories260K.bin")).expect("a model");
    let tokenizer = Tokenizer::read(&files.tokenizer).expect("a tokenizer");
    assert!(tokenizer.check_fits(512).is_ok());
    for other in [300, 32_000] {
        let message = tokenizer.check_fits(other).expect_err("of another model").to_string();
        assert!(message.contains("512 tokens") && message.contains(&format!("embeds {other}")), "{message}");
    }
}

#[test]
fn a_model_that_is_cut_or_padded_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = std::fs::read(common::data("stories260K.bin")).expect("a model");
    let message = |bytes: &[u8]| {
        let model = folder.path().join("m.bin");
        std::fs::write(&model, bytes).expect("a file");
        Weights::read(&Files { model, tokenizer: PathBuf::new() }).expect_err("refused").to_string()
    };
    assert!(message(&bytes[..20]).contains("shorter than the header"));
    assert!(message(&bytes[..5000]).contains("ends at byte 5000"));
    assert!(message(&[&bytes[..], &[0; 8]].concat()).contains("8 bytes longer"));
    assert!(message(&[&(-1i32).to_le_bytes(), &bytes[4..]].concat()).contains("-1 as number 0"));
    let empty = Files::find(folder.path()).expect_err("no model").to_string();
    assert!(empty.contains("has no config.json"), "{empty}");
}

#[test]
fn devices_and_precisions_that_cannot_be_are_refused() {
    let message = |compute: &str, method: &str| {
        let text = format!("model = 'm'\n[data]\ntrain = 't'\n{compute}\n[adapter]\nmethod = '{method}'");
        let config: Result<Config, _> = toml::from_str(&text);
        match config {
            Ok(config) => config.check().map_or_else(|e| e.to_string(), |()| "taken".into()),
            Err(e) => e.to_string(),
        }
    };
    let cases = [
        ("[compute]\ndevice = 'cuda:3'\nprecision = 'bf16'", "kron", "taken"),
        ("[compute]\nprecision = 'f16'", "lora", "taken"),
        ("[compute]\ndevice = 'gpu'", "kron", "\"gpu\" is not a device; devices are cpu, cuda:0"),
        ("[compute]\ndevice = 'cuda:'", "kron", "\"cuda:\" is not a device"),
        ("[compute]\nprecision = 'bf16'", "kron", "taken"),
        ("[compute]\nprecision = 'f16'", "full", "method full trains the weights themselves"),
    ];
    for (compute, method, want) in cases {
        assert!(message(compute, method).contains(want), "{compute}: {}", message(compute, method));
    }
    // Without a driver, such a device or the feature, the error names the setting.
    let message = Device::Cuda(1 << 20).open().expect_err("no machine has so many").to_string();
    assert!(message.contains("compute.device is cuda:1048576"), "{message}");
}

/// A run resumes in its own precision; in another it would not be the same run.
#[test]
fn a_checkpoint_of_another_precision_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = first_run(folder.path());
    assert!(config.text().expect("a text").contains("[compute]\ndevice = \"cpu\"\nprecision = \"f32\""));
    config.compute.precision = Precision::F16;
    let message = attempt(&config, folder.path(), true).expect_err("refused").to_string();
    assert!(message.contains("precision = \\\"f32") && message.contains("precision = \\\"f16"), "{message}");
}

/// Runs a few steps in a folder, and returns the settings.
fn first_run(folder: &Path) -> Config {
    let mut config = common::config(Method::Lora);
    config.train.epochs = 1;
    attempt(&config, folder, false).expect("it runs");
    config
}

fn attempt(config: &Config, folder: &Path, resume: bool) -> kron_train::Result<()> {
    let (weights, data) = common::load(config);
    let output = OutputFolder { path: folder.into(), resume };
    run(config, &weights, &data, Some(&output), &Stop::default(), &Progress::Hidden).map(|_| ())
}

#[test]
fn checkpoints_that_are_damaged_or_of_another_run_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = first_run(folder.path());
    let message =
        |config: &Config, resume| attempt(config, folder.path(), resume).expect_err("refused").to_string();
    assert!(message(&config, false).contains("holds a run"));
    let mut other = config.clone();
    other.train.lr = 0.125;
    let got = message(&other, true);
    assert!(got.contains("lr = 0.005") && got.contains("lr = 0.125"), "{got}");

    let file = folder.path().join("checkpoint.safetensors");
    let whole = std::fs::read(&file).expect("a checkpoint");
    let mut flipped = whole.clone();
    let middle = whole.len() / 2;
    flipped[middle] ^= 1;
    let mut later = whole.clone();
    let step = whole.windows(8).position(|part| part == b"\"step\":\"").expect("the step") + 8;
    later[step] ^= 1;
    for damaged in [&whole[..whole.len() - 3], &whole[..4], &flipped, &later, &[]] {
        std::fs::write(&file, damaged).expect("a file");
        let got = message(&config, true);
        assert!(got.contains("checkpoint.safetensors: is damaged"), "{got}");
    }
    std::fs::write(&file, &whole).expect("a file");
    attempt(&config, folder.path(), true).expect("it is whole again");
}

#[test]
fn a_loss_that_is_not_finite_stops_with_its_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = common::config(Method::Lora);
    config.train = kron_train::config::Train { lr: 1e30, clip: 0.0, warmup: 0.0, ..config.train };
    match attempt(&config, folder.path(), false) {
        Err(error @ Error::Diverged { step, .. }) => {
            assert!(step > 1, "{step}");
            assert!(error.to_string().contains(&format!("the loss of step {step}")), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    type Change = fn(&mut Config);
    let cases: [(Change, &str); 10] = [
        (|c| c.train.batch = 0, "train.batch is 0"),
        (|c| c.train.lr = f64::NAN, "train.lr is NaN"),
        (|c| (c.train.lr, c.train.head_lr) = (0.0, 0.01), "train.lr is 0 and train.head_lr 0.01"),
        (|c| c.train.lora_plus = 0.0, "train.lora_plus is 0"),
        (|c| c.train.warmup = 1.5, "train.warmup is 1.5"),
        (|c| c.adapter.rank = 0, "adapter.rank is 0"),
        (
            |c| (c.adapter.fused, c.adapter.dropout) = (false, 0.25),
            "adapter.dropout is 0.25, but adapter.fused = false takes none",
        ),
        (|c| c.adapter.a_in = 0, "a_out is 4 and a_in 0"),
        (|c| c.adapter.targets = vec!["nothing".into()], "matches \"nothing\""),
        (|c| (c.task, c.adapter.method) = (Task::Lm, Method::Head), "method head"),
    ];
    let (weights, data) = common::load(&common::config(Method::Kron));
    for (change, want) in cases {
        let mut config = common::config(Method::Kron);
        change(&mut config);
        let got = run(&config, &weights, &data, None, &Stop::default(), &Progress::Hidden);
        let got = got.map(|_| ()).expect_err(want).to_string();
        assert!(got.contains(want), "{got}\nwithout\n{want}");
    }
    let unknown = toml::from_str::<Config>("[train]\nlearning_rate = 1.0\n").expect_err("no such name");
    assert!(unknown.to_string().contains("learning_rate"));
}

/// Simulates a full disk by a limit on the size of files.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_leaves_the_old_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = common::config(Method::Kron);
    config.train.epochs = 1;
    let file = folder.path().join("run.toml");
    std::fs::write(&file, config.text().expect("TOML")).expect("a file");
    let out = folder.path().join("out");
    // bash counts blocks of 1 KiB; with the signal ignored, writing past the limit is an error.
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" train --config \"$1\" --out \"$2\"";
    let run = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_kron-train")])
        .args([&file, &out])
        .output()
        .expect("bash");
    let message = String::from_utf8_lossy(&run.stderr);
    assert!(!run.status.success() && message.contains("checkpoint.safetensors"), "{message}");
    assert!(!out.join("checkpoint.safetensors").exists());
    let left: Vec<_> =
        std::fs::read_dir(&out).expect("the folder").filter_map(|e| Some(e.ok()?.file_name())).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{left:?}");
}
