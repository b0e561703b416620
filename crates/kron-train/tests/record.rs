//! The tables of docs/RESULTS.md are those that the records give.

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
        check(&format!("{name}'s rates"), &sweep(&grid, &trials));
    }
}

/// What each of an entry's rates gave on the validation set with the seed that tried them all.
fn sweep(grid: &compare::Grid, trials: &[compare::Trial]) -> String {
    let row = |entry: &compare::Entry| {
        let mut rates = if entry.rates.is_empty() { grid.rates.clone() } else { entry.rates.clone() };
        rates.sort_by(f64::total_cmp);
        let merit = |rate: f64| {
            let of = |t: &&compare::Trial| t.name == entry.name && t.rate == rate && t.seed == grid.seeds[0];
            trials.iter().find(of).expect("a run of every rate").validation
        };
        let cells = rates.iter().map(|&rate| format!("{rate}: {:.2}", 100.0 * merit(rate)));
        vec![entry.name.clone(), cells.collect::<Vec<_>>().join(", ")]
    };
    let rows: Vec<Vec<String>> = grid.entries.iter().map(row).collect();
    kron_train::report::markdown(&["entry", "validation accuracy at each rate, seed 1"], &rows)
}

/// Whole training steps, fused and unfused, with one thread and with two.
#[test]
fn the_whole_steps_are_the_recorded_ones() {
    let grid = compare::Grid::read(&record("step").join("grid.toml")).expect("a grid");
    let runs = ["one.csv", "two.csv"].map(|name| -> Vec<compare::Trial> {
        let trials: Vec<compare::Trial> = read_log(&record("step").join(name)).expect("trials");
        assert_eq!(trials.len(), grid.entries.len() * grid.seeds.len(), "{name}");
        trials
    });
    let row = |entry: &compare::Entry| {
        let of = |runs: &[compare::Trial], value: fn(&compare::Trial) -> f64| {
            let all: Vec<f64> = runs.iter().filter(|t| t.name == entry.name).map(value).collect();
            assert_eq!(all.len(), grid.seeds.len(), "{}", entry.name);
            all.iter().sum::<f64>() / all.len() as f64
        };
        let step = |runs| format!("{:.0}", of(runs, |t| 1000.0 * t.step_seconds));
        let peak = |runs| format!("{:.0}", of(runs, |t| t.peak_mib.expect("a peak")));
        let params = of(&runs[0], |t| t.params as f64);
        let [one, two] = &runs;
        vec![entry.name.clone(), params.to_string(), step(one), step(two), peak(one), peak(two)]
    };
    let rows: Vec<Vec<String>> = grid.entries.iter().map(row).collect();
    let head = ["entry", "parameters", "ms a step, one thread", "two", "peak MiB, one thread", "two"];
    check("step", &kron_train::report::markdown(&head, &rows));
}

/// The example prints a line an engine, and is run with one thread and with two.
#[test]
fn the_step_times_are_the_recorded_ones() {
    let text = std::fs::read_to_string(record("step_time.txt")).expect("what the example printed");
    let clock = |line: &str| -> Option<(String, f64)> {
        let (rest, clock) = line.rsplit_once(' ')?;
        let (name, _processor) = rest.trim_end().rsplit_once(' ')?;
        Some((name.trim_end().into(), clock.parse().ok()?))
    };
    let runs: Vec<Vec<(String, f64)>> =
        text.split("\n\n").map(|run| run.lines().filter_map(clock).collect()).collect();
    let [one, two] = runs.as_slice() else { panic!("{} runs", runs.len()) };
    let row = |((name, one), (same, two)): (&(String, f64), &(String, f64))| {
        assert_eq!(name, same);
        vec![name.clone(), format!("{one:.1}"), format!("{two:.1}")]
    };
    let rows: Vec<Vec<String>> = one.iter().zip(two).map(row).collect();
    assert_eq!((one.len(), two.len()), (13, 13), "every engine of the example");
    let head = ["engine", "one thread", "two threads"];
    check("step_time.txt", &kron_train::report::markdown(&head, &rows));
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
