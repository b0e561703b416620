//! docs/TRAINING.md has every setting with its default and option, and its TOML is read.

use std::path::Path;
use std::process::Command;

use kron_train::Config;
use kron_train::config::AdapterConfig;
use toml::{Table, Value};

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/TRAINING.md");
    std::fs::read_to_string(path).expect("docs/TRAINING.md")
}

/// Cells of the row whose first cell is this setting.
fn row(page: &str, setting: &str) -> Vec<String> {
    let start = format!("| `{setting}` |");
    let line = page.lines().find(|line| line.starts_with(&start));
    let line = line.unwrap_or_else(|| panic!("docs/TRAINING.md lacks the setting {setting}"));
    line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
}

#[test]
fn the_table_has_every_default() {
    let (page, defaults) = (page(), Config::default().text().expect("TOML"));
    let defaults: Table = defaults.parse().expect("TOML");
    let mut settings = 0;
    let mut check = |setting: &str, value: &Value| {
        settings += 1;
        let want = match value.as_str() {
            Some("") => "required".to_owned(),
            _ => format!("`{value}`"),
        };
        let cells = row(&page, setting);
        let number = |text: &str| text.trim_matches('`').parse::<f64>().ok();
        let same = cells[2] == want || number(&cells[2]).is_some_and(|n| Some(n) == number(&want));
        assert!(same, "{setting} is {want}, but docs/TRAINING.md has {}", cells[2]);
    };
    for (key, value) in &defaults {
        match value.as_table() {
            Some(section) => section.iter().for_each(|(name, value)| check(&format!("{key}.{name}"), value)),
            None => check(key, value),
        }
    }
    assert!(settings > 30, "{settings} settings");
    // Settings without a default are in no text.
    for setting in ["tokenizer", "data.validation", "data.test", "data.domain"] {
        row(&page, setting);
    }
}

#[test]
fn the_table_has_the_programs_options() {
    let help = Command::new(env!("CARGO_BIN_EXE_kron-train")).args(["train", "--help"]).output();
    let help = String::from_utf8(help.expect("the program").stdout).expect("text");
    let listed = |option: &str| help.split_whitespace().any(|word| word.trim_end_matches(',') == option);
    let page = page();
    let table = page.lines().filter(|line| line.starts_with("| `"));
    let options: Vec<&str> =
        table.filter_map(|line| line.split(" | ").nth(1)?.strip_prefix("`--")?.strip_suffix('`')).collect();
    assert!(options.len() > 25, "{options:?}");
    for option in &options {
        assert!(listed(&format!("--{option}")), "kron-train train has no --{option}");
    }
    let others = ["config", "out", "resume", "rank-timeout", "help"];
    for word in help.split_whitespace().filter_map(|word| word.strip_prefix("--")) {
        let word = word.trim_end_matches(|c: char| !c.is_ascii_lowercase());
        assert!(options.contains(&word) || others.contains(&word), "docs/TRAINING.md lacks --{word}");
    }
}

#[test]
fn the_toml_is_read() {
    let page = page();
    let blocks: Vec<&str> =
        page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 3);
    for block in blocks {
        let table: Table = block.parse().expect("TOML");
        let config = |value: Value| value.try_into::<Config>().expect("settings");
        match table.get("base") {
            None => config(Value::Table(table)).check().expect("a run"),
            Some(base) => {
                config(base.clone()).check().expect("a run");
                for entry in table["entries"].as_array().expect("entries") {
                    entry["adapter"].clone().try_into::<AdapterConfig>().expect("an adapter");
                }
            }
        }
    }
}
