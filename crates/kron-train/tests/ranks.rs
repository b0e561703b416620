//! Several ranks train one model as one rank does, bit for bit; what goes wrong on one of them ends all.

mod common;

use std::path::Path;
use std::time::Duration;

use kron_train::compute::Precision;
use kron_train::config::{Method, Task, Train};
use kron_train::data::{Dataset, Examples};
use kron_train::model::Weights;
use kron_train::ranks::{World, in_threads};
use kron_train::run::{Evaluation, Outcome, OutputFolder, StepRecord, Stop, read_log, run_over};
use kron_train::{Config, Progress, Result};

const LONG: Duration = Duration::from_secs(60);

fn config() -> Config {
    let mut config = common::config(Method::Kron);
    (config.adapter.dropout, config.train.micro_batch, config.train.epochs) = (0.1, 2, 1);
    (config.data.limit_train, config.data.test) = (21, config.data.validation.clone());
    config
}

/// Files of a run that have no times: the adapter with its head, the evaluations, and the numbers of every step.
fn results(folder: &Path) -> ([Vec<u8>; 2], Vec<StepRecord>) {
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let rows: Vec<StepRecord> = read_log(&folder.join("log.csv")).expect("a log");
    let timeless = |row: &StepRecord| StepRecord { seconds: 0.0, cpu_seconds: None, ..*row };
    (["adapter.safetensors", "evaluations.csv"].map(bytes), rows.iter().map(timeless).collect())
}

struct Run {
    config: Config,
    weights: Weights,
    data: Dataset,
}

impl Run {
    fn new(config: Config) -> Self {
        let (weights, data) = common::load(&config);
        Self { config, weights, data }
    }

    fn on(&self, world: &World, folder: &Path, resume: bool, stop: &Stop) -> Result<Outcome> {
        let output = OutputFolder { path: folder.into(), resume };
        run_over(world, &self.config, &self.weights, &self.data, Some(&output), stop, &Progress::Hidden)
    }

    /// Runs to the end on some ranks; returns the first one's test score.
    fn whole(&self, ranks: usize, folder: &Path) -> f64 {
        let all = in_threads(ranks, LONG, |world| {
            self.on(&world, folder, false, &Stop::default()).map(|outcome| outcome.test.map(|test| test.loss))
        });
        let losses: Vec<f64> =
            all.into_iter().map(|one| one.expect("it runs").expect("a test set")).collect();
        assert!(losses.iter().all(|loss| loss == &losses[0]), "every rank knows the result: {losses:?}");
        losses[0]
    }
}

fn same_bits(config: Config) {
    let (run, folder) = (Run::new(config), tempfile::tempdir().expect("a folder"));
    let of = |ranks: usize| {
        let folder = folder.path().join(ranks.to_string());
        (run.whole(ranks, &folder), results(&folder))
    };
    let one = of(1);
    assert_eq!(one.1.1.len(), 3, "steps");
    for ranks in 2..5 {
        assert_eq!(of(ranks), one, "{ranks} ranks");
    }
}

/// The last batch has five examples, and so three micro-batches: one of four ranks waits.
#[test]
fn any_number_of_ranks_gives_the_same_bits() {
    same_bits(config());
}

#[test]
fn any_number_of_ranks_gives_the_same_bits_in_float16_and_with_every_weight() {
    let mut half = config();
    half.compute.precision = Precision::F16;
    same_bits(half);
    let mut full = config();
    (full.adapter.method, full.adapter.dropout, full.train.lr) = (Method::Full, 0.0, 1e-4);
    full.data.test = full.data.validation.clone();
    let (run, folder) = (Run::new(full), tempfile::tempdir().expect("a folder"));
    let of = |ranks: usize| run.whole(ranks, &folder.path().join(ranks.to_string()));
    assert_eq!(of(3), of(1));
}

/// Evaluations of questions have two lists of answers, and those of texts none.
#[test]
fn questions_and_texts_are_shared_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let [questions, texts] = ["choice.jsonl", "text.txt"].map(|name| folder.path().join(name));
    let row = |i: usize| {
        let (name, more) = (["Tom", "Lily", "Ben"][i % 3], " and happy".repeat(i % 4));
        let choices = &["a stone", "very happy", "not here"][..2 + i % 2];
        let question = format!("{name} is happy{more}. What is {name}?");
        serde_json::json!({ "q": question, "choices": choices, "answer": i % 2 }).to_string() + "\n"
    };
    std::fs::write(&questions, (0..21).map(row).collect::<String>()).expect("written");
    std::fs::write(&texts, "Once upon a time there was a dog. ".repeat(90)).expect("written");
    for (task, file) in [(Task::Choice, questions), (Task::Lm, texts)] {
        let mut config = Config { task, ..config() };
        config.data.train.clone_from(&file);
        (config.data.validation, config.data.test) = (Some(file.clone()), Some(file));
        same_bits(config);
    }
}

#[test]
fn a_run_resumes_on_another_number_of_ranks() {
    let (run, folder) = (Run::new(config()), tempfile::tempdir().expect("a folder"));
    let [whole, pieces] = ["whole", "pieces"].map(|name| folder.path().join(name));
    run.whole(1, &whole);
    for (ranks, resume) in [(3, false), (2, true)] {
        let stopped = in_threads(ranks, LONG, |world| {
            let stop = Stop::default();
            // One rank alone gets the signal.
            if world.rank() == 1 {
                stop.request();
            }
            run.on(&world, &pieces, resume, &stop).map(|outcome| outcome.stopped)
        });
        assert!(stopped.into_iter().all(|stopped| stopped.expect("it runs")));
    }
    let stop = Stop::default();
    run.on(&World::alone(), &pieces, true, &stop).expect("the last step");
    assert_eq!(results(&pieces), results(&whole));
    let evaluations: Vec<Evaluation> = read_log(&pieces.join("evaluations.csv")).expect("rows");
    assert_eq!(evaluations.len(), 2, "one on each set, at the end");
}

fn said(all: Vec<Result<bool>>) -> Vec<String> {
    all.into_iter().map(|one| one.expect_err("a failure").to_string()).collect()
}

#[test]
fn ranks_with_other_inputs_are_refused() {
    let (run, folder) = (Run::new(config()), tempfile::tempdir().expect("a folder"));
    let with = |change: &(dyn Fn(&mut Run) + Sync)| {
        said(in_threads(3, LONG, |world| {
            let mut own =
                Run { config: run.config.clone(), weights: run.weights.clone(), data: run.data.clone() };
            if world.rank() == 2 {
                change(&mut own);
            }
            own.on(&world, &folder.path().join("run"), false, &Stop::default()).map(|outcome| outcome.stopped)
        }))
    };
    let rate = with(&|run| run.config.train.lr = 0.25);
    assert_eq!(rate, vec!["rank 2 has \"lr = 0.25\", but rank 0 \"lr = 0.005\""; 3]);
    let data = with(&|run| run.data.labels[0] = "other".into());
    assert_eq!(data, vec!["rank 2 has other examples than rank 0"; 3]);
    let weights = with(&|run| run.weights = Weights::new(run.weights.config.clone(), Default::default()));
    assert_eq!(weights, vec!["rank 2 has other weights than rank 0"; 3]);
    let model = with(&|run| {
        if let kron_train::model::Config::Decoder(decoder) = &mut run.weights.config {
            decoder.rms_norm_eps = 0.5;
        }
    });
    assert_eq!(model, vec!["rank 2 has other weights than rank 0"; 3]);
    assert!(!folder.path().join("run").exists(), "nothing is written");
}

#[test]
fn a_failure_on_one_rank_is_one_on_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let go = |run: &Run, ranks, name: &str| {
        let folder = folder.path().join(name);
        said(in_threads(ranks, LONG, |world| {
            run.on(&world, &folder, false, &Stop::default()).map(|outcome| outcome.stopped)
        }))
    };
    let run = Run::new(config());
    let many = go(&run, 5, "many");
    let says = "a batch of 8 has 4 micro-batches (train.micro_batch is 2), but each of 5 ranks needs one";
    assert!(many.iter().all(|message| message.ends_with(says)), "{many:?}");
    // The first rank alone sees the folder.
    std::fs::create_dir(folder.path().join("taken")).expect("room");
    std::fs::write(folder.path().join("taken/file"), "").expect("room");
    let taken = go(&run, 2, "taken");
    assert!(taken[0].contains("a new run takes an empty folder"), "{taken:?}");
    assert_eq!(taken[1], format!("rank 0: {}", taken[0]));
    // A rate at which the second loss is not finite.
    let mut config = config();
    (config.train.lr, config.train.clip, config.train.epochs) = (1e30, 0.0, 3);
    let diverged = go(&Run::new(config), 2, "diverged");
    assert!(diverged[0].contains("lower the learning rate"), "{diverged:?}");
    assert_eq!(diverged[0], diverged[1]);
}

/// Two micro-batches of one example have masks of their own, so that their gradients are not those of one.
#[test]
fn every_micro_batch_has_its_own_mask() {
    let mut config = config();
    (config.adapter.dropout, config.train.micro_batch) = (0.5, 1);
    let gradient = |copies: usize| {
        let mut run =
            Run::new(Config { train: Train { batch: copies, ..config.train.clone() }, ..config.clone() });
        let Examples::Labelled(all) = &mut run.data.train else { panic!("the task has labels") };
        *all = vec![all[0].clone(); copies];
        let outcome = in_threads(copies, LONG, |world| {
            let folder = tempfile::tempdir().expect("a folder");
            Ok(run.on(&world, folder.path(), false, &Stop::default())?.steps[0].gradient)
        });
        outcome.into_iter().next().expect("a rank").expect("it runs")
    };
    let [one, two] = [1, 2].map(gradient);
    assert!((two / one - 1.0).abs() > 1e-3, "{one} and {two}");
}

/// A launcher of several ranks would start a run of its own in every process.
#[cfg(not(any(feature = "mpi", feature = "nccl")))]
#[test]
fn a_program_without_mpi_is_no_rank() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, value, count, link) in [
        ("OMPI_COMM_WORLD_SIZE", "4", 4, "MPI"),
        ("SLURM_STEP_NUM_TASKS", "2", 2, "MPI"),
        ("WORLD_SIZE", "3", 3, "NCCL"),
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kron-train"));
        command.args(["train", "--out"]).arg(folder.path().join("run")).env(name, value);
        let output = command.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let says = format!("{name} announces {count} ranks, but this program was built without {link}");
        assert!(!output.status.success() && said.contains(&says), "{said}");
    }
    assert!(!folder.path().join("run").exists());
}
