//! The tables of docs/RESULTS.md are those that the recorded trials give.

use std::path::{Path, PathBuf};

use kron_train::run::read_log;
use kron_train::{chains, compare};

fn record(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("record").join(name)
}

/// That the page has the table, and that the record has every run of the grid.
fn check(name: &str, table: &str) {
    let page = record("../../../docs/RESULTS.md");
    let page = std::fs::read_to_string(page).expect("docs/RESULTS.md");
    assert!(page.contains(table), "docs/RESULTS.md lacks the table of {name}:\n{table}");
}

#[test]
fn the_comparisons_are_the_recorded_ones() {
    for name in ["clinc150", "banking77", "ablation"] {
        let grid = compare::Grid::read(&record(name).join("grid.toml")).expect("a grid");
        let trials: Vec<compare::Trial> = read_log(&record(name).join("trials.csv")).expect("trials");
        let lines = compare::lines(&grid, &trials);
        assert_eq!(lines.len(), grid.entries.len(), "{name}");
        assert!(lines.iter().all(|line| line.test.len() == grid.seeds.len()), "{name}: {lines:?}");
        check(name, &compare::markdown(&lines));
    }
}

#[test]
fn the_chains_are_the_recorded_ones() {
    let grid = chains::Grid::read(&record("sequential").join("grid.toml")).expect("a grid");
    let rows: Vec<chains::Row> = read_log(&record("sequential").join("chains.csv")).expect("chains");
    let lines = chains::lines(&grid, &rows);
    let runs = grid.seeds.len() * grid.orders().len();
    assert!(lines.iter().all(|line| line.measures[0].len() == runs), "{lines:?}");
    assert_eq!(lines.len(), grid.entries.len());
    check("sequential", &chains::markdown(&lines));
}
