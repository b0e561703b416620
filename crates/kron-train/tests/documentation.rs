//! Man pages and completions of the program.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kron-train")).args(arguments).output().expect("it starts")
}

#[test]
fn every_command_has_a_man_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().to_str().expect("Unicode");
    // The second time, the pages are replaced.
    for _ in 0..2 {
        assert!(run(&["man", dir]).status.success());
    }
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect(name);
    for command in [
        "train",
        "compare",
        "sequential",
        "eval",
        "predict",
        "generate",
        "bench",
        "demo",
        "man",
        "completions",
    ] {
        let page = page(&format!("kron-train-{command}.1"));
        let title = format!(".TH KRON-TRAIN-{} ", command.to_uppercase());
        assert!(page.contains(&title), "{page}");
    }
    assert!(page("kron-train-train.1").contains("\\-\\-lr"), "{}", page("kron-train-train.1"));
    assert!(page("kron-train.1").contains("kron\\-train"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 11);
    let missing = run(&["man", folder.path().join("none").to_str().expect("Unicode")]);
    assert!(!missing.status.success() && String::from_utf8_lossy(&missing.stderr).starts_with("error: "));
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.contains("kron-train") && text.contains("head-lr"), "{shell}: {text}");
        assert!(!text.contains("head-rate"), "{shell} completes an earlier name");
    }
}

/// The earlier names of options are read, and are not shown.
#[test]
fn earlier_names_of_options_are_hidden_aliases() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    let run = |option: &str| {
        let arguments = ["train", "--model", "none", "--train", "none", option, "0.25", "--out"];
        Command::new(env!("CARGO_BIN_EXE_kron-train")).args(arguments).arg(&out).output().expect("it starts")
    };
    for (earlier, now, setting) in
        [("--rate", "--lr", "\nlr = 0.25\n"), ("--head-rate", "--head-lr", "\nhead_lr = 0.25\n")]
    {
        for option in [earlier, now] {
            let printed = String::from_utf8(run(option).stdout).expect("text");
            assert!(printed.contains(setting), "{option}: {printed}");
        }
    }
    let help = self::run(&["train", "--help"]);
    let help = String::from_utf8(help.stdout).expect("text");
    assert!(help.contains("--lr <LR>") && !help.contains("--rate"), "{help}");
}
