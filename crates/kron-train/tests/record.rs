//! The tables of docs/RESULTS.md follow from the records.

use std::path::{Path, PathBuf};

use kron_train::run::read_log;
use kron_train::studies::chains::{ChainGrid, ChainResult};
use kron_train::studies::compare::{ComparisonGrid, Trial};
use kron_train::studies::sequential::{Cell, Chain};
use kron_train::studies::{Entry, chains, compare, stats, table};

fn record(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("record").join(name)
}

/// Fails if docs/RESULTS.md lacks the table.
fn check(name: &str, table: &str) {
    let page = record("../../../docs/RESULTS.md");
    let page = std::fs::read_to_string(page).expect("docs/RESULTS.md");
    assert!(page.contains(table), "docs/RESULTS.md lacks the table of {name}:\n{table}");
}

/// Returns the records that have a file, sorted.
fn records_with(file: &str) -> Vec<String> {
    let names = std::fs::read_dir(record("")).expect("the records");
    let names = names.map(|entry| entry.expect("a record").file_name().into_string().expect("a name"));
    let mut names: Vec<String> = names.filter(|name| record(name).join(file).exists()).collect();
    names.sort();
    names
}

#[test]
fn the_comparisons_are_the_recorded_ones() {
    let names = records_with("trials.csv");
    let without_answers = ["ablation", "banking77", "clinc150"];
    assert!(without_answers.iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
    for name in &names {
        let grid = ComparisonGrid::read(&record(name).join("grid.toml")).expect("a grid");
        let trials: Vec<Trial> = read_log(&record(name).join("trials.csv")).expect("trials");
        assert_eq!(grid.unfinished(&trials), None, "{name}");
        let summaries = compare::summarise(&grid, &trials);
        assert_eq!(summaries.len(), grid.points().len(), "{name}");
        check(name, &compare::markdown(&summaries));
        match without_answers.contains(&name.as_str()) {
            true => check(&format!("{name}'s learning rates"), &sweep(&grid, &trials)),
            false => check(&format!("{name}'s differences"), &compare::differences(&summaries)),
        }
        if grid.budgets.len() > 1 {
            let file = record("../../../docs").join(format!("{name}.svg"));
            let drawn = std::fs::read_to_string(file).expect("its chart");
            assert_eq!(drawn, compare::chart_file(&summaries).expect("a chart"), "docs/{name}.svg");
        }
    }
}

/// Grids of studies, those without rows among them, are read.
#[test]
fn the_grids_of_comparisons_are_whole() {
    for (name, points) in [
        ("capacity", 28),
        ("capacity_plus16", 2),
        ("capacity_plus4", 2),
        ("capacity_scale", 4),
        ("capacity_smollm2", 6),
        ("capacity_start", 5),
        ("capacity_terms", 8),
        ("arc_challenge", 4),
        ("arc_challenge_rates", 4),
        ("arc_easy", 4),
        ("clinc150_whole", 4),
        ("banking77_whole", 4),
    ] {
        let grid = ComparisonGrid::read(&record(name).join("grid.toml")).expect("a grid");
        assert_eq!(grid.points().len(), points, "{name}");
    }
}

/// Renders each entry's validation scores at its learning rates, with the seed that tried them all.
fn sweep(grid: &ComparisonGrid, trials: &[Trial]) -> String {
    let row = |entry: &Entry| {
        let mut lrs = if entry.lrs.is_empty() { grid.lrs.clone() } else { entry.lrs.clone() };
        lrs.sort_by(f64::total_cmp);
        let score = |lr: f64| {
            let of = |t: &&Trial| t.name == entry.name && t.lr == lr && t.seed == grid.seeds[0];
            trials.iter().find(of).expect("a run of every learning rate").validation
        };
        let cells = lrs.iter().map(|&lr| format!("{lr}: {:.2}", 100.0 * score(lr)));
        vec![entry.name.clone(), cells.collect::<Vec<_>>().join(", ")]
    };
    let rows: Vec<Vec<String>> = grid.entries.iter().map(row).collect();
    table::markdown(&["entry", "validation accuracy at each learning rate, seed 1"], &rows)
}

/// Covers whole training steps, fused and unfused, with one thread and with two.
#[test]
fn the_whole_steps_are_the_recorded_ones() {
    let grid = ComparisonGrid::read(&record("step").join("grid.toml")).expect("a grid");
    let runs = ["one.csv", "two.csv"].map(|name| -> Vec<Trial> {
        let trials: Vec<Trial> = read_log(&record("step").join(name)).expect("trials");
        assert_eq!(trials.len(), grid.entries.len() * grid.seeds.len(), "{name}");
        trials
    });
    let row = |entry: &Entry| {
        let of = |runs: &[Trial], value: fn(&Trial) -> f64| {
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
    check("step", &table::markdown(&head, &rows));
}

/// The example prints one line per engine; the record has its outputs with one thread and with two.
#[test]
fn the_step_times_are_the_recorded_ones() {
    let text = std::fs::read_to_string(record("step_time.txt")).expect("the example's output");
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
    check("step_time.txt", &table::markdown(&head, &rows));
}

#[test]
fn the_chains_are_the_recorded_ones() {
    let names = records_with("chains.csv");
    assert!(["sequential", "trial"].iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
    for name in &names {
        let grid = ChainGrid::read(&record(name).join("grid.toml")).expect("a grid");
        let results: Vec<ChainResult> = read_log(&record(name).join("chains.csv")).expect("chains");
        let summaries = chains::summarise(&grid, &results);
        let runs = grid.seeds.len() * grid.orders().len();
        assert!(summaries.iter().all(|s| s.measures[0].len() == runs), "{summaries:?}");
        assert_eq!(summaries.len(), grid.entries.len());
        check(name, &chains::markdown(&summaries));
    }
}

/// Reads a chain's accuracy matrix, by its entry's index in the grid, its order and its seed.
fn chain(name: &str, entry: usize, order: &[String], seed: u64) -> Chain {
    let file = record(name).join("matrices").join(format!("{entry}-{}-{seed}.csv", order.join("-")));
    let cells = read_log(&file).expect("a matrix");
    Chain { method: String::new(), params: 0, tasks: order.to_vec(), cells }
}

#[test]
fn the_chains_matrices_are_those_of_their_rows_and_of_the_page() {
    let names = records_with("matrices");
    assert!(names.iter().any(|name| name == "sequential"), "{names:?}");
    for name in &names {
        let grid = ChainGrid::read(&record(name).join("grid.toml")).expect("a grid");
        let results: Vec<ChainResult> = read_log(&record(name).join("chains.csv")).expect("chains");
        let mut pairs = Vec::new();
        for (i, entry) in grid.entries.iter().enumerate() {
            let mut all = Vec::new();
            for order in grid.orders() {
                let chains: Vec<Chain> =
                    grid.seeds.iter().map(|seed| chain(name, i, &order, *seed)).collect();
                for (chain, seed) in chains.iter().zip(&grid.seeds) {
                    let of = |r: &&ChainResult| {
                        r.name == entry.name && r.order == order.join(" > ") && r.seed == *seed
                    };
                    let row = results.iter().find(of).expect("its row");
                    assert_eq!(chain.final_mean(), row.final_mean, "{} {} {seed}", entry.name, row.order);
                    assert_eq!(chain.backward_transfer(), row.backward_transfer);
                    assert_eq!(chain.forgetting(), row.forgetting);
                }
                if order.len() == 2 {
                    pairs.push(pair(&entry.name, &chains));
                }
                all.extend(chains);
            }
            if name == "sequential" && i < 2 {
                check(&entry.name, &means(&all));
            }
        }
        if !pairs.is_empty() {
            let head = ["entry", "chain", "first task, learned", "first task, at the end", "second task"];
            check(&format!("{name}'s pairs"), &table::markdown(&head, &pairs));
        }
    }
}

/// Returns the row of an entry's chains of two tasks: mean and deviation over the seeds, in percent.
fn pair(entry: &str, chains: &[Chain]) -> Vec<String> {
    let spread = |after: usize, on: usize| {
        let of = |chain: &Chain| {
            let mut cells = chain.cells.iter();
            let cell = cells.find(|c| c.after == after && c.on == chain.tasks[on]).expect("a cell");
            100.0 * cell.accuracy
        };
        let values: Vec<f64> = chains.iter().map(of).collect();
        format!("{:.2} ± {:.2}", stats::mean(&values), stats::deviation(&values))
    };
    vec![entry.into(), chains[0].tasks.join(" → "), spread(0, 0), spread(1, 0), spread(1, 1)]
}

/// Renders the mean accuracy on the i-th domain after the j-th, and the mean cosine, as a Markdown table.
fn means(chains: &[Chain]) -> String {
    let mean = |after: usize, on: usize, of: &dyn Fn(&Cell) -> Option<f64>| {
        let cells = chains.iter().flat_map(|chain| {
            chain.cells.iter().filter(move |c| c.after == after && c.on == chain.tasks[on]).filter_map(of)
        });
        let all: Vec<f64> = cells.collect();
        assert_eq!(all.len(), chains.len(), "after {after} on {on}");
        stats::mean(&all)
    };
    let row = |after: usize| {
        let cells = (0..5).map(|on| match on <= after {
            true => format!("{:.1}", 100.0 * mean(after, on, &|c| Some(c.accuracy))),
            false => String::new(),
        });
        let cosines = (0..after).map(|on| mean(after, on, &|c| c.cosine));
        let cosine = match after {
            0 => "–".into(),
            _ => format!("{:+.3}", stats::mean(&cosines.collect::<Vec<_>>())),
        };
        std::iter::once((after + 1).to_string()).chain(cells).chain([cosine]).collect()
    };
    let head = ["after", "on the 1st", "2nd", "3rd", "4th", "5th", "mean cosine"];
    table::markdown(&head, &(0..5).map(row).collect::<Vec<Vec<String>>>())
}
