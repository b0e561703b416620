//! The command `bench`: its parts are those of a step, and what it cannot time is refused.

mod common;

use std::process::{Command, Output};

use common::data;
use kron_train::Config;
use kron_train::config::{AdapterConfig, Method, Train};
use kron_train::model::{Files, Weights};
use kron_train::run::bench;
use serde_json::Value;

fn config(method: Method) -> Config {
    let mut config = Config { model: data("stories260K.bin"), ..Config::default() };
    config.data.train = "-".into();
    config.data.max_len = 32;
    config.adapter = AdapterConfig { method, a_in: 2, a_out: 4, rank: 4, ..AdapterConfig::default() };
    config.train = Train { batch: 5, micro_batch: 3, lr: 1e-4, ..Train::default() };
    config
}

fn run(arguments: &[&str]) -> Output {
    let program = Command::new(env!("CARGO_BIN_EXE_kron-train")).arg("bench").args(arguments).output();
    program.expect("it starts")
}

#[test]
fn the_parts_of_a_step_are_the_step() {
    for (method, has_products) in [(Method::Kron, true), (Method::Lora, true), (Method::Full, false)] {
        let config = config(method);
        let weights = Weights::read(&Files::find(&config.model).expect("a model")).expect("weights");
        let times = bench(&config, &weights, 4).expect("times");
        let parts = times.parts_ms;
        assert!(parts.named().iter().all(|(_, ms)| *ms > 0.0), "{times:?}");
        let sum: f64 = parts.named().iter().map(|(_, ms)| ms).sum();
        assert!((sum - times.sum_of_parts_ms).abs() < 1e-9 * sum, "{times:?}");
        // Another program may take the processor between two parts.
        let between = 0.1 * times.step_ms + 20.0;
        assert!(sum <= times.step_ms * (1.0 + 1e-9) && sum > times.step_ms - between, "{times:?}");
        assert!((times.tokens_per_second * times.step_ms / 1000.0 / 160.0 - 1.0).abs() < 1e-9, "{times:?}");
        assert_eq!((times.steps, times.batch, times.max_len), (3, 5, 32));
        assert_eq!(times.products_ms.is_some(), has_products, "{times:?}");
        assert!(times.products_ms.is_none_or(|ms| ms < sum), "{times:?}");
        assert_eq!(times.peak_mib.is_some(), cfg!(target_os = "linux"));
        assert!(times.params > 1000 && times.device_mib.is_none());
    }
}

#[test]
fn the_program_prints_a_table_or_json() {
    let model = data("stories260K.bin");
    let model = model.to_str().expect("Unicode");
    let options = ["--model", model, "--method", "lora", "--batch", "2", "--max-len", "16", "--steps", "3"];
    let json = run(&[&options[..], &["--json", "--checkpointing"]].concat());
    assert!(json.status.success(), "{}", String::from_utf8_lossy(&json.stderr));
    let times: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&times["batch"], &times["max_len"], &times["steps"]), (&2.into(), &16.into(), &2.into()));
    assert!(times["parts_ms"]["backward"].as_f64().expect("a time") > 0.0, "{times}");
    let table = run(&options);
    let text = String::from_utf8(table.stdout).expect("text");
    for line in ["forward of the blocks", "optimizer", "sum of the parts", "step", "products with frozen"] {
        assert!(text.lines().any(|found| found.starts_with(line) && found.ends_with(" %")), "{line}: {text}");
    }
    assert!(text.contains(" tokens/s\n") && text.contains("2 texts of 16 tokens"), "{text}");
}

#[test]
fn what_cannot_be_timed_is_refused() {
    let [decoder, encoder] = [data("stories260K.bin"), data("models/bert")];
    let [decoder, encoder] = [&decoder, &encoder].map(|path| path.to_str().expect("Unicode"));
    let small = ["--a-out", "2", "--a-in", "2", "--rank", "2", "--batch", "2", "--max-len", "8"];
    for (options, why) in [
        (&["--model", encoder][..], "the model predicts no next token: it is an encoder"),
        (&["--model", decoder, "--method", "none"], "the method none trains nothing"),
        (&["--model", decoder, "--method", "head"], "method head trains a new head"),
        (&["--model", decoder, "--max-len", "5000"], "positions"),
        (&["--method", "lora"], "model is not set, but a run needs it"),
    ] {
        // An option is given once.
        let small = if options.contains(&"--max-len") { &small[..8] } else { &small[..] };
        let refused = run(&[options, small].concat());
        let message = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{options:?}: {message}");
        assert!(message.starts_with("error: ") && message.contains(why), "{options:?}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    }
    assert_eq!(run(&["--model", decoder, "--steps", "1"]).status.code(), Some(2));
}
