//! A run that is stopped or killed and then resumed gives the same bits as an uninterrupted one.

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kron_train::compute::Precision;
use kron_train::config::{Method, Task};
use kron_train::run::{Evaluation, OutputFolder, StepRecord, Stop, read_log, run};
use kron_train::{Config, Progress};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kron-train");

fn output(folder: &Path, resume: bool) -> OutputFolder {
    OutputFolder { path: folder.into(), resume }
}

/// Reads the results of a run: adapter with its head, evaluations, and the loss of every step.
fn results(folder: &Path) -> ([Vec<u8>; 2], Vec<(u64, f32)>) {
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let rows: Vec<StepRecord> = read_log(&folder.join("log.csv")).expect("a log");
    let losses = rows.iter().map(|row| (row.step, row.loss)).collect();
    (["adapter.safetensors", "evaluations.csv"].map(bytes), losses)
}

fn config() -> Config {
    let mut config = common::config(Method::Kron);
    config.adapter.dropout = 0.1;
    config.train.micro_batch = 5;
    config
}

#[test]
fn stopping_after_every_step_changes_no_bit() {
    for precision in [Precision::F32, Precision::F16] {
        let mut config = config();
        config.compute.precision = precision;
        stopping_changes_no_bit(&config);
    }
}

#[test]
fn stopping_changes_no_bit_of_a_sum_of_terms() {
    let mut config = config();
    config.adapter.terms = 3;
    stopping_changes_no_bit(&config);
}

#[test]
fn stopping_changes_no_bit_over_a_quantised_base_with_checkpointing() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text.txt");
    std::fs::write(&text, "abbaabbaababba".repeat(120)).expect("written");
    let mut config = Config { task: Task::Lm, ..config() };
    config.model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny_llama.gguf");
    (config.data.train, config.data.validation, config.data.max_len) = (text.clone(), Some(text), 12);
    (config.adapter.a_out, config.train.checkpointing) = (2, true);
    stopping_changes_no_bit(&config);
}

/// Without dropout the choices of a question share its prefix.
#[test]
fn stopping_changes_no_bit_of_choices_that_share_a_prefix() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("choice.jsonl");
    let row = |i: usize| {
        let (name, more) = (["Tom", "Lily", "Ben"][i % 3], " and happy".repeat(i % 4));
        let choices = &["a stone", "very happy", "not here"][..2 + i % 2];
        let question = format!("{name} is happy{more}. What is {name}?");
        serde_json::json!({ "q": question, "choices": choices, "answer": i % 2 }).to_string() + "\n"
    };
    std::fs::write(&file, (0..48).map(row).collect::<String>()).expect("written");
    let mut config = Config { task: Task::Choice, ..config() };
    (config.data.train, config.data.validation, config.adapter.dropout) = (file.clone(), Some(file), 0.0);
    stopping_changes_no_bit(&config);
}

/// Compares a run in one piece with one that stops after each of its twelve steps.
fn stopping_changes_no_bit(config: &Config) {
    let folder = tempfile::tempdir().expect("a folder");
    let (weights, data) = common::load(config);
    let [whole, pieces] = ["whole", "pieces"].map(|name| folder.path().join(name));
    let go = |output: &OutputFolder, stop: &Stop| {
        run(config, &weights, &data, Some(output), stop, &Progress::Hidden).expect("it runs")
    };
    assert!(!go(&output(&whole, false), &Stop::default()).stopped);
    let mut runs = 0;
    loop {
        let stop = Stop::default();
        stop.request();
        let outcome = go(&output(&pieces, runs > 0), &stop);
        runs += 1;
        if !outcome.stopped {
            break;
        }
        assert_eq!(outcome.steps.len(), runs);
    }
    assert_eq!(runs, 13, "twelve steps and the end");
    let evaluations: Vec<Evaluation> = read_log(&whole.join("evaluations.csv")).expect("evaluations");
    assert_eq!(evaluations.iter().map(|e| e.step).collect::<Vec<_>>(), [6, 12], "after each epoch");
    assert_eq!(results(&whole), results(&pieces));
}

/// Makes a silent run of the program, or of `sh` with the program as its first argument.
fn program(mut command: Command, file: &Path, out: &Path, resume: bool) -> Command {
    command.args(["train", "--config"]).arg(file).arg("--out").arg(out);
    command.args(resume.then_some("--resume")).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Interrupts the program in the middle of a run, as the keyboard does.
#[cfg(unix)]
#[test]
fn an_interrupt_saves_and_the_run_resumes() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.toml");
    let mut config = config();
    (config.train.epochs, config.train.save_every) = (40, 0);
    std::fs::write(&file, config.text().expect("TOML")).expect("a file");
    let out = folder.path().join("out");
    let start = |resume: bool| {
        let mut command = program(Command::new(PROGRAM), &file, &out, resume);
        command.stdout(Stdio::piped()).spawn().expect("the program starts")
    };
    let steps = || read_log::<StepRecord>(&out.join("log.csv")).map_or(0, |rows| rows.len());
    for resume in [false, true] {
        let (child, before) = (start(resume), steps());
        while steps() <= before {
            std::thread::sleep(Duration::from_millis(2));
        }
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(kill.expect("kill").success());
        let ended = child.wait_with_output().expect("it ends");
        assert_eq!(ended.status.code(), Some(130));
        let printed = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(printed.contains("stopped and saved: pass --resume"), "{printed}");
        assert!(out.join("checkpoint.safetensors").exists() && steps() > before && steps() < 240);
    }
}

/// Kills the program at moments that fall into steps and into checkpoints.
#[test]
fn killing_the_program_loses_nothing_that_was_saved() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.toml");
    let mut config = config();
    config.train.epochs = 4;
    std::fs::write(&file, config.text().expect("TOML")).expect("a file");
    let start = |out: &Path, resume: bool| {
        program(Command::new(PROGRAM), &file, out, resume).spawn().expect("the program starts")
    };
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    assert!(start(&whole, false).wait().expect("it ends").success());

    let steps = |folder: &Path| read_log::<StepRecord>(&folder.join("log.csv")).map_or(0, |rows| rows.len());
    let mut kills = 0;
    for wait in (0..).map(|i: u64| Duration::from_millis(i * 7 % 40)) {
        // Killed before its first checkpoint, a run starts again, and its log with it.
        let resume = killed.join("checkpoint.safetensors").exists();
        if !resume && killed.join("log.csv").exists() {
            std::fs::remove_file(killed.join("log.csv")).expect("a file");
        }
        let before = steps(&killed);
        let mut child = start(&killed, resume);
        // Wait for a step of its own, so that every attempt makes progress.
        while steps(&killed) <= before && child.try_wait().expect("a child").is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(wait);
        child.kill().expect("a signal");
        if child.wait().expect("it ends").success() {
            break;
        }
        kills += 1;
        assert!(kills < 60, "it never gets to the end");
    }
    assert!(kills >= 3, "killed only {kills} times");
    assert_eq!(results(&whole), results(&killed));
}

/// Leaves what a run has in its folder before its first checkpoint, at every stage.
#[test]
fn a_run_without_a_checkpoint_starts_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config();
    let (weights, data) = common::load(&config);
    let go = |config: &Config, out: &Path, resume: bool| {
        run(config, &weights, &data, Some(&output(out, resume)), &Stop::default(), &Progress::Hidden)
            .map(drop)
    };
    let whole = folder.path().join("whole");
    go(&config, &whole, false).expect("it runs");
    let names = ["config.toml", "log.csv", "evaluations.csv"];
    for left in 1..=names.len() {
        let out = folder.path().join(left.to_string());
        std::fs::create_dir(&out).expect("written");
        for name in &names[..left] {
            std::fs::copy(whole.join(name), out.join(name)).expect(name);
        }
        let before = std::fs::read(out.join("config.toml")).expect("settings");
        let message = go(&config, &out, true).expect_err("no checkpoint").to_string();
        assert!(message.contains("without --resume it begins"), "{message}");
        let mut other = config.clone();
        other.train.lr *= 2.0;
        let message = go(&other, &out, true).expect_err("another run").to_string();
        assert!(message.contains("has no checkpoint.safetensors"), "{message}");
        let message = go(&other, &out, false).expect_err("another run").to_string();
        assert!(message.contains("but a new run takes an empty folder"), "{message}");
        assert_eq!(std::fs::read_dir(&out).expect("a folder").count(), left, "nothing else");
        let log = std::fs::read(out.join("log.csv")).ok();
        std::fs::write(out.join("log.csv"), "my,own\n1,data\n").expect("written");
        assert!(go(&config, &out, false).is_err(), "somebody's log");
        assert_eq!(std::fs::read(out.join("log.csv")).expect("a log"), b"my,own\n1,data\n");
        match log {
            Some(log) => std::fs::write(out.join("log.csv"), log).expect("written"),
            None => std::fs::remove_file(out.join("log.csv")).expect("removed"),
        }
        std::fs::write(out.join("notes.md"), "mine").expect("written");
        let message = go(&config, &out, true).expect_err("somebody's file").to_string();
        assert!(message.contains("has no checkpoint.safetensors"), "{message}");
        assert!(go(&config, &out, false).is_err(), "somebody's file");
        std::fs::remove_file(out.join("notes.md")).expect("a file");
        go(&config, &out, false).expect("it begins");
        assert_eq!(results(&whole), results(&out));
        assert_eq!(std::fs::read(out.join("config.toml")).expect("settings"), before);
    }
}

/// Lets the system kill the program in the middle of writing a checkpoint.
///
/// Files are limited to 32 KiB, more than the logs need; writing beyond the limit raises SIGXFSZ.
#[cfg(unix)]
#[test]
fn a_kill_within_the_write_of_a_checkpoint_leaves_the_one_before() {
    use std::os::unix::process::ExitStatusExt;

    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.toml");
    let config = config();
    std::fs::write(&file, config.text().expect("TOML")).expect("a file");
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    let (weights, data) = common::load(&config);
    let go = |output: &OutputFolder, stop: &Stop| {
        run(&config, &weights, &data, Some(output), stop, &Progress::Hidden).expect("it runs")
    };
    go(&output(&whole, false), &Stop::default());

    let checkpoint = killed.join("checkpoint.safetensors");
    for saved in [0, 1, 2] {
        if saved == 1 {
            // The first process left no checkpoint.
            std::fs::remove_dir_all(&killed).expect("a folder");
        }
        if saved > 0 {
            let stop = Stop::default();
            stop.request();
            assert_eq!(go(&output(&killed, saved > 1), &stop).steps.len(), saved);
        }
        let before = std::fs::read(&checkpoint).ok();
        assert_eq!(before.is_some(), saved > 0);
        let mut sh = Command::new("sh");
        // POSIX counts blocks of 512 bytes.
        sh.args(["-c", "ulimit -c 0; ulimit -f 64; exec \"$0\" \"$@\"", PROGRAM]);
        let ended = program(sh, &file, &killed, saved > 0).status().expect("it starts");
        assert_eq!(ended.signal(), Some(25), "{ended}");
        let half: Vec<u64> = temporaries(&killed).iter().map(|path| length(path)).collect();
        assert_eq!(half, [32 << 10], "one file, cut off by the limit");
        assert!(length(&whole.join("checkpoint.safetensors")) > 64 << 10);
        assert_eq!(std::fs::read(&checkpoint).ok(), before);
    }
    assert!(!go(&output(&killed, true), &Stop::default()).stopped);
    assert_eq!(results(&whole), results(&killed));
    assert!(temporaries(&killed).is_empty());
}

#[cfg(unix)]
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).expect("a file").len()
}

/// Lists the unfinished files of a folder.
#[cfg(unix)]
fn temporaries(folder: &Path) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path());
    files.filter(|path| path.extension().is_some_and(|e| e == "tmp")).collect()
}

/// An empty file is what a full disk may leave.
#[test]
fn an_empty_checkpoint_is_damaged_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, out) = (config(), folder.path().join("run"));
    let (weights, data) = common::load(&config);
    let go = |resume| {
        run(&config, &weights, &data, Some(&output(&out, resume)), &Stop::default(), &Progress::Hidden)
    };
    go(false).expect("it runs");
    let before = results(&out);
    std::fs::write(out.join("checkpoint.safetensors"), "").expect("room");
    let error = go(true).err().expect("a damaged checkpoint").to_string();
    assert!(error.contains("checkpoint.safetensors: is damaged"), "{error}");
    assert_eq!(results(&out), before);
}
