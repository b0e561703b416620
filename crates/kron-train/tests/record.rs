//! The tables of docs/RESULTS.md are those that the recorded trials give.

use std::path::Path;

use kron_train::compare::{Grid, Trial, lines, markdown};
use kron_train::run::read_log;

#[test]
fn the_results_are_the_recorded_ones() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results = std::fs::read_to_string(here.join("../../docs/RESULTS.md")).expect("docs/RESULTS.md");
    let record = here.join("record/clinc150");
    let grid = Grid::read(&record.join("grid.toml")).expect("a grid");
    let trials: Vec<Trial> = read_log(&record.join("trials.csv")).expect("trials");
    let table = markdown(&lines(&grid, &trials));
    assert!(results.contains(&table), "docs/RESULTS.md lacks\n{table}");
}
