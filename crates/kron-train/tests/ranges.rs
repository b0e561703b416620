//! Every number of the settings has a range, in the file, on the command line, and in the documentation.

mod common;

use std::path::Path;
use std::process::{Command, Output};

use kron_train::Config;
use kron_train::config::{FLOATS, INTEGERS, Method};
use kron_train::studies::MAX_RUNS;
use toml::{Table, Value};

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kron-train")).args(arguments).output().expect("it starts")
}

/// Reads the settings of a short run in which one number differs.
fn changed(setting: &str, value: Value) -> Result<Config, String> {
    let mut config = common::config(Method::Kron);
    // A number of held-out examples takes its place.
    config.data.validation = None;
    let mut whole: Table = config.text().expect("TOML").parse().expect("TOML");
    let (section, key) = setting.split_once('.').expect("a section");
    whole[section][key] = value;
    Value::Table(whole).try_into::<Config>().map_err(|e| e.to_string())
}

#[test]
fn every_number_outside_its_range_is_refused_with_both() {
    let powers = (0..63).flat_map(|i| [1i64 << i, (1i64 << i) - 1, -(1i64 << i)]);
    let integers: Vec<i64> = powers.chain([i64::MIN, i64::MAX, 1_000_000, 1_000_001]).collect();
    let mut trials = 0;
    for range in INTEGERS {
        for &value in &integers {
            let done =
                changed(range.name, Value::Integer(value)).and_then(|c| c.check().map_err(|e| e.to_string()));
            let inside = u64::try_from(value).is_ok_and(|n| (range.low..=range.high).contains(&n));
            assert_eq!(done.is_ok(), inside, "{} = {value}: {done:?}", range.name);
            let rule = format!(
                "{} is {value}, but it is an integer from {} to {}",
                range.name, range.low, range.high
            );
            assert!(inside || value < 0 || done == Err(rule), "{} = {value}", range.name);
            trials += 1;
        }
    }
    let floats = (-320..=308).step_by(4).map(|e| format!("1e{e}").parse::<f64>().expect("a number"));
    let floats: Vec<f64> = floats.flat_map(|f| [f, -f]).chain([0.0, 0.5, f64::NAN, f64::INFINITY]).collect();
    for range in FLOATS {
        for &value in &floats {
            let toml = match range.name {
                "train.betas" => Value::Array(vec![Value::Float(0.5), Value::Float(value)]),
                _ => Value::Float(value),
            };
            let done = changed(range.name, toml).and_then(|c| c.check().map_err(|e| e.to_string()));
            // Three settings are float32.
            let single = ["adapter.alpha", "adapter.scale", "adapter.dropout"].contains(&range.name);
            let value = if single { f64::from(value as f32) } else { value };
            assert_eq!(
                done.is_ok(),
                (range.low..=range.high).contains(&value),
                "{} = {value}: {done:?}",
                range.name
            );
            trials += 1;
        }
    }
    eprintln!("{trials} values");
    assert!(trials > 5000);
}

#[test]
fn betas_are_two() {
    for n in [0, 1, 3, 100] {
        let message = changed("train.betas", Value::Array(vec![Value::Float(0.5); n])).expect_err("two");
        assert!(message.contains(&format!("betas has {n} numbers, but AdamW has two")), "{message}");
    }
}

/// The options and the page have the ranges of the library.
#[test]
fn the_documents_have_every_range() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/TRAINING.md");
    let page = std::fs::read_to_string(page).expect("docs/TRAINING.md");
    let help = String::from_utf8(program(&["train", "--help"]).stdout).expect("text");
    let integers = INTEGERS.map(|r| (r.name, r.low as f64, r.high as f64));
    let floats = FLOATS.map(|r| (r.name, r.low, r.high));
    for (name, low, high) in integers.into_iter().chain(floats) {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).expect(name);
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let number = |text: &str| text.trim().parse::<f64>().unwrap_or(f64::NAN);
        let is_range =
            |text: &str| text.split_once(" to ").is_some_and(|(l, h)| (number(l), number(h)) == (low, high));
        assert!(
            is_range(cells[3]),
            "{name} is from {low:?} to {high:?}, but docs/TRAINING.md has {}",
            cells[3]
        );
        if let Some(option) = cells[1].strip_prefix("`--").and_then(|cell| cell.strip_suffix('`')) {
            let after = help.split(&format!("--{option} <")).nth(1).expect(option);
            let text = after.lines().nth(1).expect("a description");
            let text = text.rsplit_once('(').map_or("", |(_, range)| range.trim_end_matches(')'));
            assert!(is_range(text), "--{option}: {text}");
        }
    }
}

#[test]
fn no_number_on_the_command_line_ends_in_a_panic() {
    let settings = INTEGERS.map(|r| r.name).into_iter().chain(FLOATS.map(|r| r.name));
    let options: Vec<String> =
        settings.map(|name| name.rsplit('.').next().expect("a name").replace('_', "-")).collect();
    let values =
        ["-1", "4294967296", "9223372036854775808", "18446744073709551615", "1e300", "nan", "inf", "x"];
    let mut trials = 0;
    for option in options.iter().filter(|option| !["betas", "eps", "decay"].contains(&option.as_str())) {
        for value in values {
            let option = format!("--{option}={value}");
            let ended = program(&["train", "--model", "none", "--train", "none", "--out", "none", &option]);
            let message = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert!(matches!(ended.status.code(), Some(1 | 2)), "{option}: {:?} {message}", ended.status);
            assert!(message.starts_with("error: ") && !message.contains("panicked"), "{option}: {message}");
            trials += 1;
        }
    }
    assert_eq!(trials, 184);
    for value in ["-1", "9223372036854775808", "18446744073709551615"] {
        assert_eq!(program(&["demo", &format!("--seed={value}")]).status.code(), Some(2), "{value}");
        let arguments = ["compare", "--grid", "none", "--out", "none", &format!("--runs={value}")];
        assert!(matches!(program(&arguments).status.code(), Some(1 | 2)), "{value}");
    }
    let help = String::from_utf8(program(&["compare", "--help"]).stdout).expect("text");
    assert!(help.contains("number of runs to do now (1 to 100000)") && MAX_RUNS == 100_000, "{help}");
    for (runs, code) in [("0", 2), ("1", 1), ("100000", 1), ("100001", 2)] {
        let ended = program(&["compare", "--grid", "none", "--out", "none", "--runs", runs]);
        assert_eq!(ended.status.code(), Some(code), "--runs {runs}");
    }
}

#[test]
fn grids_out_of_range_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("grid.toml");
    let read = |head: &str, entries: &str| {
        let base = "[base]\nmodel = 'm'\n[base.data]\ntrain = 't'\n";
        std::fs::write(&file, format!("{head}\nreference = 'a'\n{base}{entries}")).expect("written");
        let grid = kron_train::studies::compare::ComparisonGrid::read(&file).map(drop);
        grid.map_err(|e| e.to_string())
    };
    let entry = "[[entries]]\nname = 'a'\nadapter = { rank = 4 }\n";
    read("lrs = [1e-3]\nseeds = [1]", entry).expect("a grid");
    let doubled = entry.repeat(2);
    for (head, entries, want) in [
        ("lrs = [1e300]\nseeds = [1]", entry, "train.lr is 1e300"),
        ("lrs = [-1.0]\nseeds = [1]", entry, "train.lr is -1.0"),
        ("lrs = [nan]\nseeds = [1]", entry, "train.lr is NaN"),
        ("lrs = [1e-3]\nseeds = [-1]", entry, "line 2: invalid value"),
        ("lrs = [1e-3]\nseeds = [1]\nscreen = 2", entry, "screen is 2"),
        ("lrs = [1e-3]\nseeds = [1]\nscreen = -2", entry, "line 3: invalid value"),
        ("lrs = [1e-3, 2e-3]\nseeds = [1]\nwiden = 101", entry, "widen is 101"),
        ("lrs = [1e-3]\nseeds = [1]\nwiden = 1", entry, "widen is 1, but \"a\" has no two learning rates"),
        (
            "lrs = [0.0, 1e-3]\nseeds = [1]\nwiden = 1",
            entry,
            "widen is 1, but \"a\" has no two learning rates",
        ),
        ("lrs = [1e-3]\nseeds = [1]\nbudgets = [-1]", entry, "line 3: invalid value"),
        ("lrs = [1e-3]\nseeds = [1]", doubled.as_str(), "two entries \"a\""),
        (
            "lrs = [1e-3]\nseeds = [1]",
            "[[entries]]\nname = 'a'\nadapter = { rank = 0 }\n",
            "adapter.rank is 0",
        ),
        ("lrs = [1e-3]\nseeds = [1]", "[[entries]]\nname = 'b'\nadapter = {}\n", "reference \"a\""),
        ("lrs = [\nseeds = [1]", entry, "line 2: "),
    ] {
        let message = read(head, entries).expect_err(want);
        assert!(message.contains(want) && message.lines().count() == 1, "{message}\nwithout\n{want}");
    }
    read("lrs = [1e-3, 2e-3]\nseeds = [1]\nwiden = 100\nbudgets = [5000]", entry).expect("a grid");
    let chains = "seeds = [1]\norders = [['x', 'y']]\nreference = 'a'\n[base]\nmodel = 'm'\n[base.data]\n\
                  train = 't'\n[[entries]]\nname = 'a'\nbudgets = [5000]\nadapter = { rank = 4 }\n";
    std::fs::write(&file, chains).expect("written");
    let message = kron_train::studies::chains::ChainGrid::read(&file).expect_err("refused").to_string();
    assert!(message.contains("gives \"a\" budgets, which only a comparison has"), "{message}");
}
