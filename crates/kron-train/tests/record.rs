//! The tables of docs/RESULTS.md are those that the recorded trials give.

use std::path::{Path, PathBuf};

use kron_train::run::read_log;
use kron_train::sequential::{Cell, Chain};
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
    for name in ["sequential", "trial"] {
        let grid = chains::Grid::read(&record(name).join("grid.toml")).expect("a grid");
        let rows: Vec<chains::Row> = read_log(&record(name).join("chains.csv")).expect("chains");
        let lines = chains::lines(&grid, &rows);
        let runs = grid.seeds.len() * grid.orders().len();
        assert!(lines.iter().all(|line| line.measures[0].len() == runs), "{lines:?}");
        assert_eq!(lines.len(), grid.entries.len());
        check(name, &chains::markdown(&lines));
    }
}

/// A chain's accuracy matrix, by its entry's place in the grid, its order and its seed.
fn chain(entry: usize, order: &[String], seed: u64) -> Chain {
    let file = record("sequential/matrices").join(format!("{entry}-{}-{seed}.csv", order.join("-")));
    let cells = read_log(&file).expect("a matrix");
    Chain { method: String::new(), params: 0, tasks: order.to_vec(), cells }
}

#[test]
fn the_chains_matrices_are_those_of_their_rows_and_of_the_page() {
    let grid = chains::Grid::read(&record("sequential").join("grid.toml")).expect("a grid");
    let rows: Vec<chains::Row> = read_log(&record("sequential").join("chains.csv")).expect("chains");
    for (i, entry) in grid.entries.iter().enumerate() {
        let mut all = Vec::new();
        for (order, seed) in grid.orders().iter().flat_map(|o| grid.seeds.iter().map(move |s| (o, *s))) {
            let chain = chain(i, order, seed);
            let of =
                |r: &&chains::Row| r.name == entry.name && r.order == order.join(" > ") && r.seed == seed;
            let row = rows.iter().find(of).expect("its row");
            assert_eq!(chain.final_mean(), row.final_mean, "{} {} {seed}", entry.name, row.order);
            assert_eq!(chain.backward_transfer(), row.backward_transfer);
            assert_eq!(chain.forgetting(), row.forgetting);
            all.push(chain);
        }
        if i < 2 {
            check(&entry.name, &means(&all));
        }
    }
}

/// Mean accuracy on the domain of each place after each place, and below the mean cosine, as a Markdown table.
fn means(chains: &[Chain]) -> String {
    let mean = |after: usize, on: usize, of: &dyn Fn(&Cell) -> Option<f64>| {
        let cells = chains.iter().flat_map(|chain| {
            chain.cells.iter().filter(move |c| c.after == after && c.on == chain.tasks[on]).filter_map(of)
        });
        let all: Vec<f64> = cells.collect();
        assert_eq!(all.len(), chains.len(), "after {after} on {on}");
        kron_train::stats::mean(&all)
    };
    let row = |after: usize| {
        let cells = (0..5).map(|on| match on <= after {
            true => format!("{:.1}", 100.0 * mean(after, on, &|c| Some(c.accuracy))),
            false => String::new(),
        });
        let cosines = (0..after).map(|on| mean(after, on, &|c| c.cosine));
        let cosine = match after {
            0 => "–".into(),
            _ => format!("{:+.3}", kron_train::stats::mean(&cosines.collect::<Vec<_>>())),
        };
        std::iter::once((after + 1).to_string()).chain(cells).chain([cosine]).collect()
    };
    let head = ["after", "on the 1st", "2nd", "3rd", "4th", "5th", "mean cosine"];
    kron_train::report::markdown(&head, &(0..5).map(row).collect::<Vec<Vec<String>>>())
}
