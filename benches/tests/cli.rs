//! The program from outside: refusals, and a smoke run's files.

use std::collections::BTreeSet;
use std::path::Path;

use assert_cmd::Command;
use assert_cmd::cargo::cargo_bin_cmd;
use predicates::prelude::*;
use serde_json::Value;

fn bench(out: &Path) -> Command {
    let mut command = cargo_bin_cmd!("kron-bench");
    command.arg("--out").arg(out);
    command
}

/// Refused with exit code 2 and one sentence that has all of `words`; nothing written.
fn refused(args: &[&str], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let assert = bench(&out).args(args).assert().code(2).stdout("");
    let text = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    assert!(words.iter().all(|w| text.contains(w)), "{args:?}: {text}");
    assert!(!out.exists(), "{args:?} wrote {}", out.display());
}

#[test]
fn bad_input_is_refused_with_the_value_and_the_rule() {
    refused(&["--model", "gpt-5"], &["gpt-5", "mistral-7b"]);
    refused(&["--layers", "q,lm_head"], &["lm_head", "gate_up"]);
    refused(&["--model", "distilbert", "--layers", "kv"], &["kv", "distilbert"]);
    refused(&["--rows", "16,0"], &["rows", "\"0\"", "from 1 to 2147483647"]);
    refused(&["--rows", "many"], &["rows", "many", "whole number"]);
    refused(&["--rank", "-3"], &["-3"]);
    refused(&["--rank", "0"], &["rank", "\"0\"", "from 1 to 2147483647"]);
    refused(&["--a-out", "7"], &["a_out = 7 does not divide d_out = 4096", "layer q"]);
    refused(&["--a-in", "3"], &["a_in = 3 does not divide d_in = 4096", "mistral-7b"]);
    refused(&["--dtype", "f64"], &["f64", "bf16"]);
    refused(&["--threads", "0"], &["threads", "\"0\""]);
    refused(&["--threads", "5000"], &["threads", "5000", "1024"]);
    refused(&["--engines", "lora"], &["engine", "\"lora\"", "lora-gemm"]);
    refused(&["--passes", "backward"], &["backward", "forward+backward"]);
    refused(&["--seconds", "0"], &["seconds", "\"0\""]);
    refused(&["--rows", "2000000000"], &["rows = 2000000000", "GB"]);
    refused(&["--model", "tiny", "--rank", "2000000000"], &["GB", "free"]);
    for option in ["--rows", "--rank", "--a-out", "--a-in", "--threads", "--seconds"] {
        for number in ["2147483648", "9223372036854775808", "18446744073709551615", "18446744073709551616"] {
            refused(&[option, number], &[number]);
        }
    }
    refused(&["--device", "gpu"], &["device", "\"gpu\"", "cuda:0"]);
    refused(&["--device", "cuda:99999"], &["cuda:99999", "but"]);
    refused(&["--bogus"], &["--bogus"]);
    refused(&["--baseline", "/no/such/bench.json"], &["/no/such/bench.json"]);
    refused(&["--markdown", "/no/such/table.md"], &["/no/such"]);
}

#[test]
fn a_file_in_the_folders_place_and_a_false_baseline_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "{\"rows\": []}").unwrap();
    let is_refused = |command: &mut Command, words: &str| {
        command.assert().code(2).stdout("").stderr(predicate::str::contains(words.to_string()));
    };
    is_refused(&mut bench(&file), "is not a folder");
    is_refused(&mut bench(&file.join("below")), "is not a folder");
    is_refused(bench(&folder.path().join("out")).arg("--baseline").arg(&file), "is not a bench.json");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

const KEYS: [&str; 25] = [
    "a_in",
    "a_out",
    "copy_fraction",
    "d_in",
    "d_out",
    "dtype",
    "engine",
    "extra_bytes",
    "flops",
    "gbps",
    "layer",
    "median_s",
    "model",
    "ok",
    "params",
    "pass",
    "q10_s",
    "q90_s",
    "rank",
    "rel_error",
    "roof_fraction",
    "rounds",
    "rows",
    "rows_checked",
    "speedup",
];

const META: [&str; 19] = [
    "alpha",
    "cache_bytes",
    "commit",
    "cpu",
    "cpus",
    "date",
    "features",
    "gemm",
    "isa",
    "machine",
    "noise_floor",
    "os",
    "rank",
    "roof",
    "rotated_bytes",
    "rustc",
    "seconds",
    "threads",
    "version",
];

#[test]
fn a_smoke_run_leaves_a_whole_report() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("deep").join("report");
    let markdown = folder.path().join("table.md");
    let tiny = [
        "--smoke",
        "--model",
        "tiny",
        "--layers",
        "q,down",
        "--rows",
        "1,67",
        "--seconds",
        "2",
        "--rank",
        "5",
    ];
    let run = |extra: &[&str]| {
        let mut command = bench(&out);
        command.args(tiny).args(["--dtype", "f32,f16,bf16"]).args(extra).assert().success()
    };
    let text =
        String::from_utf8(run(&["--markdown", markdown.to_str().unwrap()]).get_output().stdout.clone())
            .unwrap();
    assert!(text.contains("kron-fused") && text.contains("geometric mean"), "{text}");

    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("bench.json")).unwrap()).unwrap();
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&json["meta"]), META.map(String::from).into());
    let rows = json["rows"].as_array().unwrap();
    // Two layers, two row counts, three dtypes, two passes; nine engines of which LoRA's come at two ranks.
    assert_eq!(rows.len(), 2 * 2 * 3 * 2 * 9);
    for row in rows {
        assert_eq!(keys(row), KEYS.map(String::from).into());
        assert_eq!(row["ok"], true, "{row}");
        assert!(row["median_s"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["q10_s"].as_f64() <= row["median_s"].as_f64(), "{row}");
        assert!(row["median_s"].as_f64() <= row["q90_s"].as_f64(), "{row}");
        assert!(row["speedup"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["roof_fraction"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["rounds"].as_u64().unwrap() >= 7, "{row}");
    }
    let has = |key: &str, value: &str| rows.iter().any(|r| r[key] == value);
    for engine in
        ["linear", "lora-gemm", "lora-fused", "kron-unfused", "kron-dense", "kron-fused", "merge-per-step"]
    {
        assert!(has("engine", engine), "{engine}");
    }
    assert!(has("pass", "forward") && has("pass", "forward+backward") && has("dtype", "bf16"));
    assert!(json["meta"]["roof"]["copy_bytes_per_s"].as_f64().unwrap() > 0.0);

    let csv = std::fs::read_to_string(out.join("bench.csv")).unwrap();
    assert_eq!(csv.lines().count(), rows.len() + 1);
    let html = std::fs::read_to_string(out.join("index.html")).unwrap();
    assert!(html.contains("<svg") && html.ends_with("</html>\n"));
    let table = std::fs::read_to_string(markdown).unwrap();
    assert_eq!(table.lines().filter(|l| l.starts_with("| tiny")).count(), 12, "{table}");

    let before = out.join("bench.json").display().to_string();
    let text = String::from_utf8(run(&["--baseline", &before]).get_output().stdout.clone()).unwrap();
    assert!(text.contains("216 measurements in both"), "{text}");
}

/// The record is there after the first of four layers and dtypes, whole, with what it has until then.
#[test]
fn a_run_that_is_stopped_leaves_what_it_measured() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("bench.json");
    let few =
        ["--model", "tiny", "--layers", "q,down", "--rows", "1", "--dtype", "f32,bf16", "--seconds", "8"];
    let mut run = std::process::Command::new(env!("CARGO_BIN_EXE_kron-bench"))
        .args(few)
        .arg("--out")
        .arg(folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !json.exists() {
        assert!(run.try_wait().unwrap().is_none(), "the run ended before it left anything");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let record: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let rows = record["rows"].as_array().unwrap().len();
    // Nine engines, two passes, a layer.
    assert!(rows > 0 && rows < 4 * 18 && rows.is_multiple_of(18), "{rows} rows");
}

/// So many rows that the ring has only two sets, and more engines than that warm up on it.
#[test]
fn an_engine_is_judged_on_data_that_no_other_has_touched() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report");
    let few = ["--model", "tiny", "--layers", "q", "--rows", "40000", "--dtype", "f32", "--seconds", "1"];
    bench(&out)
        .args(few)
        .args(["--engines", "lora-fused,lora-gemm,kron-fused,kron-unfused"])
        .assert()
        .success();
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("bench.json")).unwrap()).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 12);
    assert!(rows.iter().all(|r| r["rel_error"].as_f64().unwrap() < 1e-5), "{rows:?}");
}

/// Limits the address space below the stack of one thread, so that the system refuses it.
#[cfg(target_os = "linux")]
#[test]
fn a_system_without_threads_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut sh = std::process::Command::new("sh");
    let script = "ulimit -v 8000000; exec \"$0\" --smoke --out \"$1\"";
    sh.args(["-c", script, env!("CARGO_BIN_EXE_kron-bench")]).arg(folder.path().join("report"));
    let ended = sh.env("RUST_MIN_STACK", "100000000000").output().unwrap();
    let message = String::from_utf8(ended.stderr).unwrap();
    assert_eq!((ended.status.code(), message.lines().count()), (Some(1), 1), "{message}");
    assert!(message.starts_with("error: no threads can be started: "), "{message}");
}
