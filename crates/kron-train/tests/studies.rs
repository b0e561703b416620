//! Chains of tasks, the tasks and the demo, each at a small size.

mod common;

use std::path::Path;

use kron_train::config::{AdapterConfig, Method, Task};
use kron_train::data::{Dataset, Examples, Tokenizer};
use kron_train::model::Files;
use kron_train::run::{Stop, run};
use kron_train::studies::chains::{self, ChainGrid, ChainResult};
use kron_train::studies::sequential::sequential;
use kron_train::studies::{Entry, Schedule, demo};
use kron_train::{Config, Progress};

#[test]
fn a_planted_update_is_found_by_its_own_kind() {
    let results = demo::demo(0, |_, _, _| ()).expect("it runs");
    let [kron, lora] = results.as_slice() else { panic!("{results:?}") };
    assert!(lora.params >= kron.params, "LoRA has no fewer parameters: {results:?}");
    assert!(
        kron.loss.0 > 0.05 && kron.loss.0 == lora.loss.0,
        "both start at the pretrained model: {results:?}"
    );
    assert!(kron.loss.1 < 0.25 * kron.loss.0, "{results:?}");
    assert!(kron.loss.1 < 0.5 * lora.loss.1, "{results:?}");
    assert!(kron.distance < lora.distance, "{results:?}");
}

#[test]
fn a_grid_of_chains_runs_missing_chains() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut base = common::config(Method::Kron);
    base.data.train = common::data("clinc.train.jsonl");
    (base.data.validation, base.data.test) = (None, Some(common::data("clinc.test.jsonl")));
    (base.data.limit_train, base.data.limit_eval, base.train.epochs) = (0, 0, 1);
    let (weights, _) = common::load(&base);
    (base.data.limit_train, base.data.limit_eval) = (48, 20);
    let entry = |name: &str, method| Entry {
        name: name.into(),
        lrs: vec![1e-3],
        adapter: AdapterConfig { method, rank: 2, ..base.adapter.clone() },
        ..Entry::default()
    };
    let grid = ChainGrid {
        seeds: vec![1, 2],
        orders: Vec::new(),
        pairs: vec!["travel".into(), "kitchen_and_dining".into()],
        reference: "lora".into(),
        entries: vec![entry("lora", Method::Lora), entry("kron", Method::Kron)],
        base,
    };
    assert_eq!(grid.domains(), ["kitchen_and_dining", "travel"]);
    let tokenizer = Tokenizer::read(&common::data("tok512.bin")).expect("a tokenizer");
    let read = |domain: String| {
        let mut config = grid.base.clone();
        config.data.domain = Some(domain.clone());
        (domain, Dataset::read(&config, &tokenizer).expect("data"))
    };
    let data = grid.domains().into_iter().map(read).collect();
    let mut done = 0;
    let mut go = |stop: &Stop| {
        chains::run(&grid, &weights, &data, folder.path(), &Schedule::quiet(stop.clone()), |_| {
            done += 1;
            if done == 3 {
                stop.request();
            }
        })
    };
    assert!(go(&Stop::default()).is_err(), "stopped in the middle");
    let results = go(&Stop::default()).expect("it runs");
    assert_eq!((results.len(), done), (8, 8), "two entries, both orders, two seeds, each once");
    let other = tempfile::tempdir().expect("a folder");
    let schedule = Schedule { jobs: 2, ..Schedule::quiet(Stop::default()) };
    let two = chains::run(&grid, &weights, &data, other.path(), &schedule, |_| ());
    let sorted = |mut rows: Vec<ChainResult>| {
        rows.sort_by_key(|row| (row.seed, row.order.clone(), row.name.clone()));
        rows
    };
    assert_eq!(sorted(two.expect("two at a time")), sorted(results.clone()));
    let summaries = chains::summarise(&grid, &results);
    let [lora, kron] = summaries.as_slice() else { panic!("{summaries:?}") };
    assert!(lora.params > kron.params && lora.p.is_none() && kron.p.is_some_and(|p| p[0] <= 1.0));
    let mean =
        |name: &str| results.iter().filter(|r| r.name == name).map(|r| r.final_mean).sum::<f64>() / 4.0;
    let table = chains::markdown(&summaries);
    assert!(table.contains(&format!("| 4 | {:.2} ± ", 100.0 * mean("kron"))), "{table}");
    assert!(folder.path().join("report.html").exists());
    let one = folder.path().join("0-travel-kitchen_and_dining-1");
    assert!(one.join("matrix.csv").exists());
    let saved = Config::read(&one.join("config.toml")).expect("its settings");
    assert_eq!((saved.adapter.method, saved.train.seed), (Method::Lora, 1));

    // A chain with another learning rate is another row, whose folder is taken; so is a moved entry's.
    let matrix = std::fs::read(one.join("matrix.csv")).expect("a matrix");
    let mut faster = grid.clone();
    faster.entries[0].lrs = vec![2e-3];
    let mut moved = grid.clone();
    let mut krona = moved.entries[0].clone();
    (krona.name, krona.adapter.method) = ("krona".into(), Method::Krona);
    moved.entries.insert(0, krona);
    for (other, why) in
        [(&faster, "\"lr = 0.001\", but this one has \"lr = 0.002\""), (&moved, "\"method = ")]
    {
        let (folder, stop) = (folder.path(), Stop::default());
        let refused = chains::run(other, &weights, &data, folder, &Schedule::quiet(stop), |_| ());
        let message = refused.expect_err("the folder is taken").to_string();
        assert!(
            message.contains("0-travel-kitchen_and_dining-1 holds a chain with") && message.contains(why),
            "{message}"
        );
    }
    assert_eq!(std::fs::read(one.join("matrix.csv")).expect("a matrix"), matrix);
    let doubled = results.iter().map(|r| ChainResult { lr: 2e-3, final_mean: 9.0, ..r.clone() });
    let both: Vec<ChainResult> = doubled.chain(results.iter().cloned()).collect();
    assert_eq!(chains::summarise(&grid, &both), summaries, "results of another learning rate are ignored");
}

#[test]
fn a_chain_of_tasks_evaluates_earlier_tasks() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = common::config(Method::Kron);
    config.data.train = common::data("clinc.train.jsonl");
    (config.data.validation, config.data.test) = (None, Some(common::data("clinc.test.jsonl")));
    (config.data.limit_train, config.data.limit_eval, config.train.epochs) = (0, 0, 3);
    let tokenizer = Tokenizer::read(&common::data("tok512.bin")).expect("a tokenizer");
    let (weights, _) = common::load(&config);
    let task = |domain: &str| {
        let mut config = config.clone();
        config.data.domain = Some(domain.into());
        (domain.to_owned(), Dataset::read(&config, &tokenizer).expect("data"))
    };
    let tasks = [task("travel"), task("kitchen_and_dining")];
    assert_eq!(tasks[0].1.labels.len(), 15);
    let tasks = tasks.each_ref().map(|(name, data)| (name.as_str(), data));
    let chain = sequential(&config, &weights, &tasks, folder.path(), &Stop::default(), &Progress::Hidden)
        .expect("it runs");
    assert_eq!(chain.cells.len(), 3);
    // Guessing gives one in fifteen.
    assert!(chain.cells.iter().filter(|c| c.learned == c.on).all(|c| c.accuracy > 0.2), "{:?}", chain.cells);
    let cosine = chain.cells[1].cosine.expect("off the diagonal");
    assert!(cosine.abs() <= 1.0 && cosine != 0.0, "{cosine}");
    assert!(chain.backward_transfer() < 0.2);

    // A finished chain is not repeated, and one that was cut off keeps its rows until it has as many again.
    let matrix = folder.path().join("matrix.csv");
    let go = |stop: &Stop| {
        let again = sequential(&config, &weights, &tasks, folder.path(), stop, &Progress::Hidden);
        (again, std::fs::read_to_string(&matrix).expect("a matrix"))
    };
    let stopped = Stop::default();
    stopped.request();
    let whole = std::fs::read_to_string(&matrix).expect("a matrix");
    let (again, rows) = go(&stopped);
    let again = again.expect("no step is needed");
    assert_eq!((&again.cells, &again.method, again.params), (&chain.cells, &chain.method, chain.params));
    assert_eq!(rows, whole);
    for kept in [2, 3] {
        let part: String = whole.split_inclusive('\n').take(kept).collect();
        std::fs::write(&matrix, &part).expect("written");
        let (again, rows) = go(&stopped);
        assert!(again.is_err() && rows == part, "{rows}");
    }
    // It fails in its second task, when it has a row less than before.
    let untested = Dataset { test: None, ..tasks[1].1.clone() };
    let cut = [tasks[0], (tasks[1].0, &untested)];
    let stop = Stop::default();
    let again = sequential(&config, &weights, &cut, folder.path(), &stop, &Progress::Hidden);
    assert!(again.expect_err("no test set").to_string().contains("has no test set"));
    assert_eq!(std::fs::read_to_string(&matrix).expect("a matrix").lines().count(), 3);
    let (again, rows) = go(&stop);
    assert_eq!((again.expect("it runs").cells, rows), (chain.cells, whole));
}

/// Questions of two domains in one file, whose answers contradict each other: what the second teaches is forgotten
/// knowledge of the first.
#[test]
fn a_chain_of_questions_has_no_heads() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("questions.jsonl");
    let line = |i: usize, domain: &str, answer: usize| {
        let q = format!("Tom has {} dogs and one more, so Tom is", i % 5);
        format!(
            "{}\n",
            serde_json::json!({ "q": q, "choices": ["happy", "sad"], "answer": answer, "domain": domain })
        )
    };
    let lines: String = (0..80).map(|i| [line(i, "glad", 0), line(i, "sorry", 1)].concat()).collect();
    std::fs::write(&file, lines).expect("a file");
    let mut config = common::config(Method::Kron);
    (config.task, config.data.limit_train, config.data.limit_eval) = (Task::Choice, 0, 0);
    (config.data.train, config.data.validation, config.data.test) = (file.clone(), None, Some(file));
    let (weights, _) = common::load(&config);
    let tokenizer = Tokenizer::read(&common::data("tok512.bin")).expect("a tokenizer");
    let task = |domain: &str| {
        let mut config = config.clone();
        config.data.domain = Some(domain.into());
        Dataset::read(&config, &tokenizer).expect("data")
    };
    let tasks = [("glad", &task("glad")), ("sorry", &task("sorry"))];
    assert_eq!(tasks.map(|(_, data)| data.train.len()), [80, 80]);
    let out = folder.path().join("chain");
    let chain =
        sequential(&config, &weights, &tasks, &out, &Stop::default(), &Progress::Hidden).expect("it runs");
    let accuracies: Vec<f64> = chain.cells.iter().map(|cell| cell.accuracy).collect();
    assert_eq!(accuracies, [1.0, 0.0, 1.0], "learned, forgotten, learned");

    let other = Config { task: Task::Lm, ..config };
    let refused = sequential(&other, &weights, &tasks, &out, &Stop::default(), &Progress::Hidden);
    let message = refused.expect_err("no accuracy").to_string();
    assert!(message.contains("its task is classify or choice, but it is Lm"), "{message}");
}

#[test]
fn a_language_model_gets_better_at_its_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text.txt");
    let line = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n\n";
    std::fs::write(&text, line.repeat(40)).expect("a file");
    let mut config = common::config(Method::Kron);
    (config.task, config.data.limit_train) = (Task::Lm, 0);
    (config.data.train, config.data.validation) = (text.clone(), Some(text));
    let (weights, data) = common::load(&config);
    let outcome = run(&config, &weights, &data, None, &Stop::default(), &Progress::Hidden).expect("it runs");
    let (first, last) = (outcome.steps[0].loss, outcome.validation.expect("a score").loss);
    assert!(last < 0.7 * f64::from(first), "from {first} to {last}");
}

/// Reads the same text as lines of JSON; the beginning of a sequence is encoded once per text.
#[test]
fn a_text_may_be_lines_of_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let paragraphs = "One day, Tom went out.\n\nHe saw a dog. ";
    let [plain, lines] = ["t.txt", "t.jsonl"].map(|name| folder.path().join(name));
    std::fs::write(&plain, paragraphs).expect("a file");
    let line = format!("{}\n", serde_json::json!({ "text": paragraphs, "source": "a tale" }));
    std::fs::write(&lines, line.repeat(2)).expect("a file");
    let mut config = common::config(Method::Kron);
    (config.task, config.data.validation, config.data.max_len) = (Task::Lm, None, 2);
    let tokenizer = Tokenizer::read(&common::data("tok512.bin")).expect("a tokenizer");
    let mut ids = |path: &Path| {
        config.data.train = path.into();
        match Dataset::read(&config, &tokenizer).expect("data").train {
            Examples::Plain(all) => all.concat(),
            other => panic!("{other:?}"),
        }
    };
    let (once, twice) = (ids(&plain), ids(&lines));
    assert_eq!(once.iter().filter(|&&id| id == 1).count(), 1);
    assert_eq!(twice.iter().filter(|&&id| id == 1).count(), 2);
    assert_eq!(twice[..once.len()], once);
    let text = tokenizer.decode(&once).expect("ids");
    assert!(
        paragraphs.starts_with(text.trim_end()) && text.len() + 4 > paragraphs.trim_end().len(),
        "{text}"
    );
    std::fs::write(&lines, "{\"text\": \"a\"}\n{\"txt\": \"b\"}\n").expect("a file");
    let message = Dataset::read(&config, &tokenizer).expect_err("refused").to_string();
    assert!(message.contains("line 2 is malformed"), "{message}");
}

/// A question that is too long loses its beginning, never the choice.
#[test]
fn a_long_question_keeps_its_choices() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("choice.jsonl");
    let question = "Once upon a time there was a little girl named Lily. What did she like?";
    let row = serde_json::json!({ "q": question, "choices": ["to play", "the big red ball"], "answer": 0 });
    std::fs::write(&file, format!("{row}\n")).expect("a file");
    let mut config = common::config(Method::Lora);
    (config.task, config.data.train, config.data.validation) = (Task::Choice, file, None);
    let tokenizer = Tokenizer::read(&common::data("tok512.bin")).expect("a tokenizer");
    let mut rows = |max_len: usize| {
        config.data.max_len = max_len;
        Dataset::read(&config, &tokenizer).map(|data| match data.train {
            Examples::Questions(all) => all[0].rows.clone(),
            other => panic!("{other:?}"),
        })
    };
    let (whole, cut) = (rows(100).expect("data"), rows(14).expect("data"));
    for ((whole, start), (cut, at)) in whole.iter().zip(&cut) {
        assert_eq!((cut.len(), cut[0]), (14, whole[0]));
        assert_eq!(cut[1..], whole[whole.len() - 13..]);
        assert_eq!(cut[*at..], whole[*start..], "the choice");
    }
    let message = rows(4).expect_err("no room").to_string();
    assert!(message.contains("line 1 has a choice of") && message.contains("max_len = 4"), "{message}");
}

#[test]
fn multiple_choice_learns_which_answer_is_right() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("choice.jsonl");
    let names = ["Lily", "Tom", "Ben", "Mia", "Sam", "Sue", "Max", "Amy"];
    let lines = names.iter().map(|name| {
        format!("{{\"q\": \"{name} is happy. What is {name}?\", \"choices\": [\"a stone\", \"very happy\", \"not here\"], \"answer\": 2}}\n")
    });
    std::fs::write(&file, lines.collect::<String>()).expect("a file");
    let mut config = common::config(Method::Lora);
    (config.task, config.train.epochs) = (Task::Choice, 8);
    (config.data.train, config.data.validation) = (file.clone(), Some(file.clone()));
    let files = Files::find(&config.model).expect("a model");
    let (weights, data) = common::load(&config);
    let outcome = run(&config, &weights, &data, None, &Stop::default(), &Progress::Hidden).expect("it runs");
    let score = outcome.validation.expect("a score");
    assert!(score.accuracy == Some(1.0) && score.loss < f64::from(outcome.steps[0].loss), "{score}");

    std::fs::write(&file, "{\"q\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 2}\n").expect("a file");
    let tokenizer = Tokenizer::read(&files.tokenizer).expect("a tokenizer");
    let message = Dataset::read(&config, &tokenizer).expect_err("refused").to_string();
    assert!(message.contains("line 1 has answer 2"), "{message}");
}
