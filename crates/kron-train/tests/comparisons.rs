//! Comparisons at a small size: missing runs, learning rates, and runs that were cut off.

mod common;

use std::process::Command;

use kron_train::Progress;
use kron_train::config::{AdapterConfig, Method};
use kron_train::run::{Log, OutputFolder, StepRecord, Stop, read_log, run};
use kron_train::studies::compare::{ComparisonGrid, Trial, compare, markdown, running_name, summarise};
use kron_train::studies::{Entry, Schedule};

#[test]
fn a_comparison_runs_missing_trials_and_picks_learning_rates_on_the_validation_set() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut base = common::config(Method::Kron);
    base.train.epochs = 1;
    base.data.test = base.data.validation.clone();
    let entry = |name: &str, method| Entry {
        name: name.into(),
        lrs: Vec::new(),
        budgets: Vec::new(),
        adapter: AdapterConfig { method, rank: 2, ..base.adapter.clone() },
    };
    let grid = ComparisonGrid {
        lrs: vec![1e-4, 1e-2],
        seeds: vec![1, 2],
        screen: 0,
        entries: vec![entry("lora", Method::Lora), entry("kron", Method::Kron), entry("head", Method::Head)],
        reference: "lora".into(),
        base,
        ..Default::default()
    };
    let (weights, data) = common::load(&grid.base);
    let mut done = 0;
    let mut go = |stop: &Stop| {
        compare(&grid, &weights, &data, folder.path(), &Schedule::quiet(stop.clone()), |_| {
            done += 1;
            if done == 5 {
                stop.request();
            }
        })
        .expect("it runs")
    };
    assert_eq!(go(&Stop::default()).len(), 5, "stopped in the middle");
    let trials = go(&Stop::default());
    assert_eq!((trials.len(), done), (12, 12), "three entries, two learning rates, two seeds, each once");
    let mut results = summarise(&grid, &trials);
    assert_eq!(results.len(), 3);
    for result in &results {
        let of = |lr: f64| trials.iter().filter(move |t| t.name == result.name && t.lr == lr);
        let score = |lr: f64| of(lr).map(|t| t.validation).sum::<f64>();
        assert!(score(result.lr) >= score(1e-4).max(score(1e-2)) - 1e-12, "{result:?}");
        assert_eq!(result.test.len(), 2);
        assert_eq!(result.p.is_none(), result.name == "lora");
    }
    assert!(results[0].params > results[1].params && results[2].params == 0);
    assert_eq!(markdown(&results).lines().count(), 5);
    assert!(!markdown(&results).contains("GPU"));
    results[1].device_mib = Some(4321);
    assert_eq!(markdown(&results).matches(", GPU 4321 |").count(), 1);
    (results[1].step_seconds, results[1].step_cpu_seconds) = (Some(1.2344), Some(7.6541));
    assert_eq!(markdown(&results).matches(" | 1234 | 7654 | ").count(), 1);
    assert!(folder.path().join("report.html").exists());
}

#[test]
fn only_the_best_learning_rate_of_the_first_seeds_runs_with_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut base = common::config(Method::Head);
    base.train.epochs = 1;
    base.data.test = base.data.validation.clone();
    let entry = Entry { name: "head".into(), adapter: base.adapter.clone(), ..Entry::default() };
    let (lrs, seeds) = (vec![1e-5, 1e-2, 3e-5], vec![1, 2, 3]);
    let grid = ComparisonGrid {
        lrs,
        seeds,
        screen: 1,
        entries: vec![entry],
        reference: "head".into(),
        base,
        ..Default::default()
    };
    let (weights, data) = common::load(&grid.base);
    let stop = Stop::default();
    let trials =
        compare(&grid, &weights, &data, folder.path(), &Schedule::quiet(stop), |_| ()).expect("it runs");
    let ran: Vec<(f64, u64)> = trials.iter().map(|t| (t.lr, t.seed)).collect();
    let best = summarise(&grid, &trials)[0].lr;
    let score = |lr: f64| trials.iter().find(|t| t.lr == lr && t.seed == 1).map(|t| t.validation);
    assert!(grid.lrs.iter().all(|lr| score(*lr) <= score(best)), "{trials:?}");
    assert_eq!(grid.unfinished(&trials), None);
    assert_eq!(grid.unfinished(&trials[..4]).as_deref(), Some("4 of 5 runs done"));
    // The higher one of equals wins, wherever it stands.
    let equal: Vec<Trial> = trials[..3].iter().map(|t| Trial { validation: 0.5, ..t.clone() }).collect();
    assert_eq!(summarise(&grid, &equal)[0].lr, 1e-2);
    assert_eq!(ran, [(1e-5, 1), (1e-2, 1), (3e-5, 1), (best, 2), (best, 3)]);
    assert_eq!(summarise(&grid, &trials)[0].test.len(), 3);
}

/// A run that was cut off goes on from its checkpoint if it is the next one, and is thrown away if it is not.
#[test]
fn a_comparison_continues_the_run_that_was_cut_off() {
    let mut base = common::config(Method::Lora);
    (base.train.epochs, base.data.test) = (1, base.data.validation.clone());
    let entry = Entry { name: "lora".into(), adapter: base.adapter.clone(), ..Entry::default() };
    let (lrs, seeds) = (vec![1e-3], vec![1]);
    let grid = ComparisonGrid {
        lrs,
        seeds,
        entries: vec![entry],
        reference: "lora".into(),
        base,
        ..Default::default()
    };
    let (weights, data) = common::load(&grid.base);
    let go = |cut: Option<u64>| {
        let folder = tempfile::tempdir().expect("a folder");
        let (out, never) = (folder.path().join("out"), Stop::default());
        let all = |stop: &Stop| compare(&grid, &weights, &data, &out, &Schedule::quiet(stop.clone()), |_| ());
        if let Some(seed) = cut {
            let stopped = Stop::default();
            stopped.request();
            all(&stopped).expect("no run");
            let mut config = grid.base.clone();
            (config.train.lr, config.train.seed) = (1e-3, seed);
            let output =
                OutputFolder { path: out.join(running_name(&config).expect("a name")), resume: false };
            let part =
                run(&config, &weights, &data, Some(&output), &stopped, &Progress::Hidden).expect("a step");
            assert!(part.stopped && part.steps.len() == 1);
            // The first step took a day.
            let step = StepRecord { cpu_seconds: Some(86400.0), ..part.steps[0] };
            Log::start(&output.path.join("log.csv"), &[step]).expect("written");
        }
        let trials = all(&never).expect("it runs");
        let left = std::fs::read_dir(&out).expect("the folder").flatten();
        let names: Vec<_> = left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        assert!(names.iter().all(|name| !name.starts_with("running")) && trials.len() == 1, "{names:?}");
        trials[0].clone()
    };
    let (whole, resumed, other) = (go(None), go(Some(1)), go(Some(2)));
    let result = |t: &Trial| (t.validation, t.test, t.right.clone(), t.right_by_sum.clone());
    assert_eq!((result(&whole), result(&whole)), (result(&resumed), result(&other)));
    let days = |t: &Trial| t.step_cpu_seconds.expect("a time") * 6.0 / 86400.0;
    assert!(days(&resumed) > 0.9 && days(&whole) < 0.1 && days(&other) < 0.1, "{resumed:?}");
    let right = whole.right.expect("answers");
    let share = right.matches('1').count() as f64 / right.len() as f64;
    assert!(right.len() == 28 && (share - whole.test).abs() < 1e-12, "{right}");
}

/// Runs the program repeatedly, as a study with one process per run does.
#[test]
fn a_comparison_may_be_done_a_few_runs_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut base = common::config(Method::Head);
    (base.train.epochs, base.data.test) = (1, base.data.validation.clone());
    let entry = Entry { name: "head".into(), adapter: base.adapter.clone(), ..Entry::default() };
    let (lrs, seeds) = (vec![1e-3, 1e-2, 3e-2], vec![1]);
    let grid = ComparisonGrid {
        lrs,
        seeds,
        screen: 0,
        entries: vec![entry],
        reference: "head".into(),
        base,
        ..Default::default()
    };
    let file = folder.path().join("grid.toml");
    std::fs::write(&file, grid.text().expect("TOML")).expect("a file");
    let out = folder.path().join("out");
    for (runs, done) in [("2", 2), ("2", 3), ("1", 3)] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_kron-train"));
        program.args(["compare", "--runs", runs, "--grid"]).arg(&file).arg("--out").arg(&out);
        let ended = program.output().expect("it starts");
        assert!(ended.status.success());
        let (printed, page) =
            (String::from_utf8_lossy(&ended.stdout), std::fs::read_to_string(out.join("report.html")));
        for text in [&*printed, &page.expect("a report")] {
            assert_eq!(text.contains("2 of 3 runs done"), done == 2, "{text}");
            assert_eq!(text.contains("runs done"), done == 2, "{text}");
        }
        let trials: Vec<Trial> = read_log(&out.join("trials.csv")).expect("trials");
        assert_eq!(trials.len(), done);
    }
}

/// Two runs at a time give the rows of one at a time, but for their order and their times.
#[test]
fn several_jobs_give_the_same_rows() {
    let mut base = common::config(Method::Kron);
    (base.train.epochs, base.data.test) = (1, base.data.validation.clone());
    let entry = |name: &str, method| Entry {
        name: name.into(),
        adapter: AdapterConfig { method, rank: 2, ..base.adapter.clone() },
        ..Entry::default()
    };
    let grid = ComparisonGrid {
        lrs: vec![1e-3, 1e-2],
        widen: 1,
        seeds: vec![1, 2],
        screen: 1,
        entries: vec![entry("lora", Method::Lora), entry("kron", Method::Kron)],
        reference: "lora".into(),
        base,
        ..Default::default()
    };
    let (weights, data) = common::load(&grid.base);
    let rows = |jobs: usize| {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("out");
        let schedule = Schedule { jobs, ..Schedule::quiet(Stop::default()) };
        let trials = compare(&grid, &weights, &data, &out, &schedule, |_| ());
        let saved: Vec<Trial> = read_log(&out.join("trials.csv")).expect("rows");
        let trials = trials.expect("it runs");
        assert_eq!(saved.len(), trials.len());
        assert_eq!(
            trials.iter().all(|t| t.peak_mib.is_none()),
            schedule.count() > 1,
            "memory is that of all"
        );
        let left = std::fs::read_dir(&out).expect("the folder").filter(|entry| {
            entry.as_ref().expect("an entry").file_name().to_string_lossy().starts_with("running")
        });
        assert_eq!(left.count(), 0);
        let timeless = |t: Trial| Trial { step_seconds: 0.0, step_cpu_seconds: None, peak_mib: None, ..t };
        let mut rows: Vec<Trial> = trials.into_iter().map(timeless).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name).then(a.lr.total_cmp(&b.lr)).then(a.seed.cmp(&b.seed)));
        rows
    };
    let one = rows(1);
    assert!(one.len() > 7, "two entries, two rates and a third, and the best with another seed: {one:?}");
    assert_eq!(rows(3), one);
}
