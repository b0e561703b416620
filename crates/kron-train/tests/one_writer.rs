//! One process at a time writes into an output folder, but for studies, whose runs several share; no input lies in it.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kron_adapter::io::OutputLock;
use kron_train::Config;
use kron_train::config::Method;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kron-train");

/// Settings of a few steps on two tasks.
fn config() -> Config {
    let mut config = common::config(Method::Kron);
    config.data.train = common::data("clinc.train.jsonl");
    (config.data.validation, config.data.test) =
        (Some(common::data("clinc.test.jsonl")), Some(common::data("clinc.test.jsonl")));
    (config.data.limit_train, config.data.limit_eval, config.data.max_len) = (8, 8, 8);
    (config.train.batch, config.train.epochs, config.train.save_every) = (4, 1, 1);
    config
}

fn arguments(folder: &Path) -> Vec<(&'static str, Vec<String>)> {
    let put = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let file = put("run.toml", config().text().expect("TOML"));
    let base = config().text().expect("TOML").replace("\n[", "\n[base.");
    let head = "seeds = [1, 2, 3]\nreference = 'a'\n[[entries]]\nname = 'a'\nlrs = [1e-3]\nadapter = { a_out = 4, a_in = 2 }\n";
    let rates = put("rates.toml", format!("lrs = [1e-3]\nscreen = 1\n{head}[base]\n{base}"));
    let chains =
        put("chains.toml", format!("pairs = ['travel', 'kitchen_and_dining']\n{head}[base]\n{base}"));
    let own = |options: &[&str]| options.iter().map(|option| (*option).to_owned()).collect();
    vec![
        ("train", own(&["--config", &file])),
        ("compare", own(&["--grid", &rates])),
        ("sequential", own(&["--config", &file, "--domains", "travel,kitchen_and_dining"])),
        ("sequential", own(&["--grid", &chains])),
    ]
}

fn program(command: &str, arguments: &[String], out: &Path) -> Command {
    let mut program = Command::new(PROGRAM);
    program.arg(command).args(arguments).arg("--out").arg(out);
    program.stdout(Stdio::null()).stderr(Stdio::piped()).env("RAYON_NUM_THREADS", "1");
    program
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
    assert!(sent.expect("kill").success());
}

/// Pauses a process as soon as it holds its folder; a second one is refused, and the first ends whole.
#[cfg(unix)]
#[test]
fn a_second_process_is_refused_and_the_first_ends_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut rounds = 0;
    for (command, arguments) in arguments(folder.path()).into_iter().filter(|(_, own)| own[0] == "--config") {
        let alone = folder.path().join("alone");
        assert!(program(command, &arguments, &alone).status().expect("it starts").success(), "{arguments:?}");
        let want = contents(&alone);
        let (mut done, mut tried) = (0, 0);
        while done < 15 {
            tried += 1;
            assert!(tried < 60, "{command} ends before it is paused");
            let out = folder.path().join("out");
            let mut first = program(command, &arguments, &out).spawn().expect("it starts");
            let lock = out.join(".kron.lock");
            let holds = || std::fs::read(&lock).is_ok_and(|holder| !holder.is_empty());
            while !holds() && first.try_wait().expect("a child").is_none() {
                std::thread::yield_now();
            }
            // Some rounds pause it later.
            std::thread::sleep(std::time::Duration::from_millis(tried % 4));
            signal(&first, "-STOP");
            if holds() {
                let second = program(command, &arguments, &out).output().expect("it starts");
                let message = String::from_utf8_lossy(&second.stderr).into_owned();
                let holder = format!("is being written by kron-train (process {})", first.id());
                assert_eq!(second.status.code(), Some(1), "{message}");
                assert!(message.contains(&holder) && message.lines().count() == 1, "{message}");
                done += 1;
            }
            signal(&first, "-CONT");
            assert!(first.wait().expect("it ends").success());
            assert!(contents(&out) == want, "{command}: other files than those of a run alone");
            std::fs::remove_dir_all(&out).expect("a folder");
        }
        rounds += done;
        std::fs::remove_dir_all(&alone).expect("a folder");
    }
    assert_eq!(rounds, 30);
}

/// Lists a folder's files; with their bytes those that have neither times nor unordered metadata.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        if path.is_dir() {
            all.extend(
                contents(&path).into_iter().map(|(inner, bytes)| (Path::new(name).join(inner), bytes)),
            );
            continue;
        }
        let timed = ["log.csv", "trials.csv", "tables.md", "report.html", "checkpoint.safetensors"]
            .iter()
            .any(|timed| name == *timed);
        let bytes = if timed { Vec::new() } else { std::fs::read(&path).expect("a file") };
        all.push((name.into(), bytes));
    }
    all.sort();
    all
}

/// Starts many processes at once: one writes, the others are refused.
#[test]
fn of_processes_that_start_together_one_writes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (command, arguments) = arguments(folder.path()).swap_remove(0);
    let alone = folder.path().join("alone");
    assert!(program(command, &arguments, &alone).status().expect("it starts").success());
    for round in 0..10 {
        let out = folder.path().join(round.to_string());
        let start = |_| program(command, &arguments, &out).spawn().expect("it starts");
        let children: Vec<Child> = (0..3).map(start).collect();
        let ended = children.into_iter().map(|child| child.wait_with_output().expect("it ends"));
        let (whole, refused): (Vec<_>, Vec<_>) = ended.partition(|ended| ended.status.success());
        assert_eq!(whole.len(), 1);
        for other in refused {
            let message = String::from_utf8_lossy(&other.stderr).into_owned();
            assert!(
                ["is being written by", "holds a run"].iter().any(|why| message.contains(why)),
                "{message}"
            );
        }
        assert!(contents(&out) == contents(&alone), "other files than those of a run alone");
    }
}

/// Keeps the cells of a study's rows that do not depend on time, sorted.
fn rows(out: &Path) -> Vec<Vec<String>> {
    const TIMED: [&str; 4] = ["step_seconds", "step_cpu_seconds", "peak_mib", "device_mib"];
    let file = ["trials.csv", "chains.csv"].map(|name| out.join(name)).into_iter().find(|file| file.exists());
    let mut reader = csv::Reader::from_path(file.expect("rows")).expect("rows");
    let head = reader.headers().expect("a header").clone();
    let cells = |row: csv::StringRecord| {
        let all = head.iter().zip(&row).filter(|(name, _)| !TIMED.contains(name));
        all.map(|(_, cell)| cell.to_owned()).collect::<Vec<_>>()
    };
    let mut rows: Vec<_> = reader.records().map(|row| cells(row.expect("a row"))).collect();
    rows.sort();
    rows
}

/// Processes that start together share the runs of a study, each of which is done once; a killed one's run is
/// continued by another.
#[test]
fn processes_share_a_study() {
    let folder = tempfile::tempdir().expect("a folder");
    for (command, arguments) in arguments(folder.path()).into_iter().filter(|(_, own)| own[0] == "--grid") {
        let alone = folder.path().join(format!("{command}-alone"));
        assert!(program(command, &arguments, &alone).status().expect("it starts").success());
        // A killed process leaves its locks, unlocked.
        let is_lock = |path: &PathBuf| path.extension().is_some_and(|end| end == "lock");
        let names = |out: &Path| {
            let all = contents(out).into_iter().map(|(path, _)| path);
            all.filter(|path| !is_lock(path)).collect::<Vec<_>>()
        };
        let start =
            |out: &Path| program(command, &arguments, out).stdout(Stdio::piped()).spawn().expect("it starts");
        for round in 0..4 {
            let out = folder.path().join(format!("{command}-{round}"));
            let mut children: Vec<Child> = (0..3).map(|_| start(&out)).collect();
            if round > 0 {
                // Some rounds kill it while it runs, some before or after.
                std::thread::sleep(std::time::Duration::from_millis(20 * round));
                let mut first = children.remove(0);
                first.kill().expect("a child");
                first.wait().expect("it ends");
            }
            let mut runs = 0;
            for child in children {
                let ended = child.wait_with_output().expect("it ends");
                assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
                let said = String::from_utf8_lossy(&ended.stdout);
                runs += said.lines().filter(|line| line.contains(" seed ")).count();
            }
            assert_eq!(rows(&out), rows(&alone), "{command}, round {round}");
            assert!(round > 0 || runs == rows(&alone).len(), "{runs} runs for {} rows", rows(&alone).len());
            assert_eq!(names(&out), names(&alone), "{command}, round {round}");
        }
    }
}

/// Claims one run as another process would: a process does all others, waits for it, and does it when it is given up.
#[test]
fn a_claimed_run_is_left_alone_until_it_is_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let (command, arguments) = arguments(folder.path()).pop().expect("a grid of chains");
    let (alone, out) = (folder.path().join("alone"), folder.path().join("out"));
    assert!(program(command, &arguments, &alone).status().expect("it starts").success());
    let first = "0-travel-kitchen_and_dining-1";
    assert!(alone.join(first).is_dir());
    std::fs::create_dir(&out).expect("a folder");
    let claim = OutputLock::beside(&out.join(first)).expect("nobody has it");
    let mut child = program(command, &arguments, &out).spawn().expect("it starts");
    let done = || out.join("chains.csv").exists().then(|| rows(&out).len());
    while done() != Some(rows(&alone).len() - 1) {
        assert_eq!(child.try_wait().expect("a child"), None, "it ends before the claimed run has its row");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // It asks again every half a second.
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert!(child.try_wait().expect("a child").is_none() && !out.join(first).exists());
    drop(claim);
    assert!(child.wait().expect("it ends").success());
    assert_eq!(rows(&out), rows(&alone));
}

/// Puts each input into the output folder, and links to it there.
#[test]
fn no_input_lies_in_the_output_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    std::fs::create_dir(&out).expect("written");
    let copy = |from: &Path, name: &str| {
        std::fs::copy(from, out.join(name)).expect("written");
        out.join(name).display().to_string()
    };
    let train = copy(&common::data("clinc.train.jsonl"), "log.csv");
    let tokenizer = copy(&common::data("tok512.bin"), "tok.bin");
    let model = copy(&common::data("stories260K.bin"), "model.bin");
    let before = contents(&out);
    let all = arguments(folder.path());
    let refused = |command: &str, arguments: &[String], input: &str| {
        let ended = program(command, arguments, &out).output().expect("it starts");
        let message = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(1), "{message}");
        assert!(
            message.contains("is not written: that would change") && message.contains(input),
            "{message}"
        );
        assert!(contents(&out) == before, "{message}");
    };
    for (option, input) in [
        ("--train", &train),
        ("--validation", &train),
        ("--test", &train),
        ("--tokenizer", &tokenizer),
        ("--model", &model),
    ] {
        for (command, arguments) in all.iter().filter(|(_, arguments)| arguments[0] == "--config") {
            refused(command, &[arguments.as_slice(), &[option.to_owned(), input.clone()]].concat(), input);
        }
    }
    for (command, arguments) in &all {
        let file = out.join("config.toml");
        std::fs::copy(&arguments[1], &file).expect("written");
        let mut inside = arguments.clone();
        inside[1] = file.display().to_string();
        let ended = program(command, &inside, &out).output().expect("it starts");
        let message = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(message.contains("that would change") && message.contains(&inside[1]), "{message}");
        assert_eq!(std::fs::read(&arguments[1]).expect("a file"), std::fs::read(&file).expect("a file"));
        std::fs::remove_file(file).expect("a file");
    }
}
