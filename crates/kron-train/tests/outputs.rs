//! Output folders, printed lines and exit codes of the program.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kron_train::Config;
use kron_train::config::Method;

/// Makes the program with its first arguments.
fn program(command: &str, config: &Path, out: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_kron-train"));
    let option = if command == "compare" { "--grid" } else { "--config" };
    program.arg(command).arg(option).arg(config).arg("--out").arg(out);
    program
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the sentence of a refusal.
fn refused(command: &mut Command) -> String {
    let ended = command.output().expect("it starts");
    let message = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

fn save(folder: &Path, config: &Config) -> PathBuf {
    let file = folder.join("run.toml");
    std::fs::write(&file, config.text().expect("TOML")).expect("written");
    file
}

/// Settings of a run of 12 steps.
fn short() -> Config {
    let mut config = common::config(Method::Kron);
    (config.train.epochs, config.train.save_every) = (2, 0);
    config
}

/// Lists a folder's files with their bytes.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|e| e.expect("an entry").path());
    let mut all: Vec<_> = entries
        .filter(|path| !path.ends_with(".kron.lock"))
        .map(|path| {
            (
                path.file_name().expect("a name").to_string_lossy().into(),
                std::fs::read(&path).unwrap_or_default(),
            )
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_new_run_replaces_nobodys_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, out) = (save(folder.path(), &short()), folder.path().join("out"));
    std::fs::create_dir(&out).expect("written");
    for name in ["adapter.safetensors", "log.csv", "report.html", "notes.md", ".hidden"] {
        let path = out.join(name);
        std::fs::write(&path, "mine").expect("written");
        let message = refused(&mut program("train", &config, &out));
        assert!(
            message.contains(&format!("holds {name:?}, but a new run takes an empty folder")),
            "{message}"
        );
        let message = refused(program("train", &config, &out).arg("--resume"));
        assert!(message.contains("has no checkpoint.safetensors, but --resume"), "{message}");
        assert_eq!(contents(&out), [(name.to_owned(), b"mine".to_vec())]);
        std::fs::remove_file(path).expect("a file");
    }
    let missing = folder.path().join("missing");
    let message = refused(program("train", &config, &missing).arg("--resume"));
    assert!(message.contains("has no checkpoint.safetensors") && !missing.exists(), "{message}");
}

#[test]
fn a_run_resumes_from_its_own_settings_which_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, out) = (save(folder.path(), &short()), folder.path().join("out"));
    assert!(program("train", &file, &out).output().expect("it starts").status.success());
    let own = out.join("config.toml");
    let text = format!("# mine\n{}", std::fs::read_to_string(&own).expect("settings"));
    std::fs::write(&own, &text).expect("written");
    let ended = program("train", &own, &out).arg("--resume").output().expect("it starts");
    assert!(ended.status.success(), "{}", self::text(&ended.stderr));
    assert_eq!(std::fs::read_to_string(&own).expect("settings"), text);
    let message = refused(&mut program("train", &own, &out));
    assert!(message.contains("that would change"), "{message}");
}

#[test]
fn a_study_takes_its_own_folder_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let (grid, out) = (folder.path().join("grid.toml"), folder.path().join("out"));
    let mut base = short();
    (base.train.epochs, base.data.test) = (1, base.data.validation.clone());
    let value = toml::to_string(&base).expect("TOML").replace("\n[", "\n[base.");
    let text = format!(
        "lrs = [1e-3]\nseeds = [1]\nreference = 'a'\n[[entries]]\nname = 'a'\nadapter = {{ method = 'head' }}\n[base]\n{value}"
    );
    std::fs::write(&grid, text).expect("written");
    std::fs::create_dir(&out).expect("written");
    for name in ["trials.csv", "notes.md", "report.html"] {
        std::fs::write(out.join(name), "mine").expect("written");
        let message = refused(&mut program("compare", &grid, &out));
        assert!(
            message.contains(&format!("holds {name:?}, but a study takes an empty folder, or its own")),
            "{message}"
        );
        assert_eq!(contents(&out), [(name.to_owned(), b"mine".to_vec())]);
        std::fs::remove_file(out.join(name)).expect("a file");
    }
    for _ in 0..2 {
        assert!(program("compare", &grid, &out).output().expect("it starts").status.success());
    }
    let names: Vec<String> = contents(&out).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["chart.svg", "grid.toml", "report.html", "tables.md", "trials.csv"]);
    // A chain in the study's folder, and in that of another chain.
    let mut config = short();
    config.data.train = common::data("clinc.train.jsonl");
    (config.data.validation, config.data.test) = (None, Some(common::data("clinc.test.jsonl")));
    (config.data.limit_train, config.data.limit_eval, config.train.epochs) = (16, 8, 1);
    let file = save(folder.path(), &config);
    let chain = |out: &Path, domains: &str| {
        let mut chain = program("sequential", &file, out);
        chain.args(["--domains", domains]);
        chain
    };
    let message = refused(&mut chain(&out, "travel,kitchen_and_dining"));
    assert!(message.contains("but a chain takes an empty folder, or its own"), "{message}");
    let own = folder.path().join("chain");
    for _ in 0..2 {
        let ended = chain(&own, "travel,kitchen_and_dining").output().expect("it starts");
        assert!(ended.status.success(), "{}", self::text(&ended.stderr));
    }
    let before = contents(&own);
    let message = refused(&mut chain(&own, "kitchen_and_dining,travel"));
    assert!(
        message.contains("task \"travel\" in place 0, but this one has \"kitchen_and_dining\""),
        "{message}"
    );
    let message = refused(chain(&own, "travel,kitchen_and_dining").args(["--lr", "0.5"]));
    assert!(message.contains("\"lr = 0.005\", but this one has \"lr = 0.5\""), "{message}");
    assert_eq!(contents(&own), before);
}

#[test]
fn without_a_terminal_a_run_writes_some_lines_and_what_comes_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = short();
    config.train.epochs = 10;
    let out = folder.path().join("it's mine");
    let ended = program("train", &save(folder.path(), &config), &out).output().expect("it starts");
    assert!(ended.status.success());
    let lines: Vec<String> = text(&ended.stderr).lines().map(str::to_owned).collect();
    assert!(lines[0].ends_with(" parameters, 60 steps"), "{lines:?}");
    let steps = [1].into_iter().chain((3..=60).step_by(3)).map(|step| format!("step {step} of 60: loss "));
    assert_eq!(lines.len(), 22);
    steps.zip(&lines[1..]).for_each(|(want, line)| assert!(line.starts_with(&want), "{line}"));
    let printed = text(&ended.stdout);
    let adapter = out.join("adapter.safetensors").display().to_string();
    assert!(printed.lines().any(|line| line == format!("adapter: {adapter}")), "{printed}");
    // A shell takes the commands as they stand.
    for (command, want) in [
        ("kron inspect ", format!("{adapter}\n")),
        ("kron convert ", format!("{adapter}\n{}\n--to\nlora\n--factors-only\n", out.join("lora").display())),
    ] {
        let line = printed.lines().find_map(|line| line.trim_start().strip_prefix(command)).expect(command);
        let words = Command::new("sh").args(["-c", &format!("printf '%s\\n' {line}")]).output().expect("sh");
        assert_eq!(text(&words.stdout), want, "{line}");
    }
    assert!(!printed.contains("kron merge"), "a file of llama2.c is not merged");
}

/// A name with a line end and a command to the terminal stays within its line and its row.
#[test]
fn a_name_does_not_end_a_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let grid = folder.path().join("grid.toml");
    let mut base = short();
    (base.train.epochs, base.data.test) = (1, base.data.validation.clone());
    let value = toml::to_string(&base).expect("TOML").replace("\n[", "\n[base.");
    let name = r#""a\nb\u001b[31m\u2028c""#;
    let head = format!("lrs = [1e-3]\nseeds = [1]\nreference = {name}\n[[entries]]\nname = {name}");
    std::fs::write(&grid, format!("{head}\nadapter = {{ method = 'head' }}\n[base]\n{value}"))
        .expect("written");
    let ended = program("compare", &grid, &folder.path().join("out")).output().expect("it starts");
    let printed = text(&ended.stdout);
    let shown = "a\u{fffd}b\u{fffd}[31m\u{fffd}c";
    let begins = |begin: &str| printed.lines().filter(|line| line.starts_with(begin)).count();
    // One row in the table of entries, one in that of differences.
    assert_eq!(
        (begins(&format!("{shown} learning rate ")), begins(&format!("| {shown} | "))),
        (1, 2),
        "{printed}"
    );
    assert!(!printed.contains('\u{1b}'), "{printed}");
}

/// The description has the shapes that are trained, not those that were asked for.
#[test]
fn shapes_are_those_of_the_trained_adapter() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = short();
    (config.adapter.a_out, config.adapter.a_in, config.train.epochs) = (7, 5, 1);
    // The layers have sides of 32, 64 and 172.
    for (targets, want) in [
        ("q_proj", "kron 4×4 r 4, s = 8/4"),
        ("down_proj", "kron 4×4 r 4, s = 8/4"),
        ("layer*", "kron 4×4 r 4, s = 8/4"),
    ] {
        config.adapter.targets = vec![targets.into()];
        let out = folder.path().join(targets.trim_end_matches('*'));
        let ended = program("train", &save(folder.path(), &config), &out).output().expect("it starts");
        let printed = text(&ended.stdout);
        assert!(printed.contains(&format!("\n{want}, ")), "{printed}\nwithout\n{want}");
    }
    // 43 divides 172 alone.
    (config.adapter.a_out, config.adapter.a_in, config.adapter.targets) = (43, 2, vec!["layer*".into()]);
    let out = folder.path().join("both");
    let ended = program("train", &save(folder.path(), &config), &out).output().expect("it starts");
    let printed = text(&ended.stdout);
    assert!(printed.contains("\nkron 43×2 r 4 (A 32×2 on "), "{printed}");
    assert!(printed.contains(", 43×2 on 10 layers), s = 8/4, "), "{printed}");
}

#[test]
fn a_small_part_of_the_training_set_knows_every_class() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = short();
    (config.data.limit_train, config.data.limit_eval, config.train.epochs) = (3, 0, 1);
    let out = folder.path().join("out");
    let ended = program("train", &save(folder.path(), &config), &out).output().expect("it starts");
    assert!(ended.status.success(), "{}", text(&ended.stderr));
}

#[test]
fn an_adapter_larger_than_the_model_is_refused_before_it_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = save(folder.path(), &short());
    let out = folder.path().join("out");
    let message = refused(program("train", &file, &out).args(["--method", "lora", "--rank", "65536"]));
    assert!(
        message.contains("adapters of lora r 65536 have ") && message.contains("at most 16 times"),
        "{message}"
    );
}

/// A backtrace of candle does not belong to the sentence.
#[test]
fn an_error_is_one_sentence_with_backtraces_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = short();
    config.adapter.targets = vec!["nothing".into()];
    let file = save(folder.path(), &config);
    for backtrace in ["0", "1", "full"] {
        let mut run = program("train", &file, &folder.path().join(backtrace));
        let message = refused(run.env("RUST_BACKTRACE", backtrace));
        assert!(message.contains("no linear layer of the model matches \"nothing\""), "{message}");
    }
    std::fs::write(&file, "[train]\nlr = 1\nbatch = \n").expect("written");
    let message = refused(&mut program("train", &file, &folder.path().join("out")));
    assert!(message.contains("run.toml: line 3: "), "{message}");
}

/// Interrupts each command after its first step.
#[cfg(unix)]
#[test]
fn an_interrupted_command_ends_with_130() {
    use std::io::{BufRead, BufReader};

    let folder = tempfile::tempdir().expect("a folder");
    let mut config = short();
    config.data.train = common::data("clinc.train.jsonl");
    (config.data.validation, config.data.test) =
        (Some(common::data("clinc.test.jsonl")), Some(common::data("clinc.test.jsonl")));
    (config.data.limit_train, config.train.epochs) = (0, 1000);
    let file = save(folder.path(), &config);
    let grid = folder.path().join("grid.toml");
    let base = toml::to_string(&config).expect("TOML").replace("\n[", "\n[base.");
    let head = "lrs = [1e-3]\nseeds = [1]\nreference = 'a'\n[[entries]]\nname = 'a'\nadapter = { method = 'head' }\n[base]\n";
    std::fs::write(&grid, format!("{head}{base}")).expect("written");
    for command in ["train", "compare", "sequential"] {
        let mut run =
            program(command, if command == "compare" { &grid } else { &file }, &folder.path().join(command));
        if command == "sequential" {
            run.args(["--domains", "travel,kitchen_and_dining"]);
        }
        let mut child = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let first =
            lines.by_ref().find(|line| line.as_ref().is_ok_and(|line| line.starts_with("step 1 of ")));
        assert!(first.is_some(), "{command}");
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(kill.expect("kill").success());
        let rest = lines.map_while(std::result::Result::ok).collect::<Vec<_>>();
        assert_eq!(child.wait().expect("it ends").code(), Some(130), "{command}: {rest:?}");
    }
}

/// Limits the address space below the stack of one thread, so that the system refuses it.
#[cfg(target_os = "linux")]
#[test]
fn a_system_without_threads_is_an_error() {
    let run = |limit: &str| -> Output {
        let script = format!("{limit} exec \"$0\" demo");
        let mut sh = Command::new("sh");
        sh.args(["-c", &script, env!("CARGO_BIN_EXE_kron-train")]).env("RUST_MIN_STACK", "100000000000");
        sh.output().expect("sh")
    };
    let ended = run("ulimit -v 8000000;");
    let message = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{message}");
    assert!(message.starts_with("error: no threads can be started: "), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

/// Names a pipe, a folder and a device as each input; a wait or an endless read would never end.
#[cfg(unix)]
#[test]
fn inputs_are_regular_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let file = save(folder.path(), &short());
    let tokenizer = |path: &Path| {
        let model = tempfile::tempdir_in(folder.path()).expect("written").keep();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(common::data("models/bert").join(name), model.join(name)).expect("written");
        }
        std::fs::copy(common::data("models/bert/tokenizer.json"), model.join("tokenizer.json"))
            .expect("written");
        (model, path.to_path_buf())
    };
    let mut trials = 0;
    for special in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
        let out = folder.path().join("out");
        for option in ["--train", "--validation", "--test", "--tokenizer"] {
            let message = refused(program("train", &file, &out).arg(option).arg(special));
            assert!(message.contains("is not a regular file"), "{option} {}: {message}", special.display());
            trials += 1;
        }
        for command in ["train", "compare"] {
            let message = refused(&mut program(command, special, &out));
            assert!(message.contains("is not a regular file"), "{command} {}: {message}", special.display());
            trials += 1;
        }
        for name in ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"] {
            let (model, to) = tokenizer(special);
            std::fs::remove_file(model.join(name)).unwrap_or_default();
            std::os::unix::fs::symlink(to, model.join(name)).expect("a link");
            let message = refused(program("train", &file, &out).arg("--model").arg(&model));
            let why = ["is not a regular file", "has no config.json and tokenizer.json"];
            assert!(why.iter().any(|why| message.contains(why)), "{name} {}: {message}", special.display());
            trials += 1;
        }
        for name in ["checkpoint.safetensors", "log.csv", "evaluations.csv"] {
            let run = tempfile::tempdir_in(folder.path()).expect("written").keep().join("run");
            assert!(program("train", &file, &run).output().expect("it starts").status.success());
            std::fs::remove_file(run.join(name)).expect("a file");
            std::os::unix::fs::symlink(special, run.join(name)).expect("a link");
            let message = refused(program("train", &file, &run).arg("--resume"));
            assert!(message.contains("is not a regular file"), "{name} {}: {message}", special.display());
            trials += 1;
        }
    }
    assert_eq!(trials, 39);
}
