//! Adapters that are sums of Kronecker terms: their start, their number, their training, and their files.

mod common;

use kron_adapter::Adapter;
use kron_candle::TrainableDelta;
use kron_core::{KronOp, reference};
use kron_train::config::{Config, Method};
use kron_train::run::{OutputFolder, Stop, run};
use kron_train::{Learner, Progress};
use ndarray::Array2;

fn config(terms: usize) -> Config {
    let mut config = common::config(Method::Kron);
    config.adapter.terms = terms;
    config
}

fn learner(config: &Config) -> Learner {
    let (weights, data) = common::load(config);
    Learner::new(config, &weights, &data).expect("it fits")
}

fn deltas(learner: &Learner) -> &[TrainableDelta] {
    learner.adapters().expect("adapters").deltas()
}

fn values(learner: &Learner) -> Vec<f32> {
    let all = learner.trained().iter().map(|(_, group)| group.var().flatten_all()?.to_vec1());
    all.collect::<candle_core::Result<Vec<_>>>().expect("values").concat()
}

/// Returns ΔW of a module.
fn delta_weight(adapter: &Adapter, module: &str) -> Array2<f64> {
    let terms = adapter.terms(module).iter().map(|layer| {
        reference::delta_weight(&KronOp::new(*layer.shape(), layer.scaling().scale()), layer.theta())
    });
    terms.reduce(|sum, term| sum + term).expect("a term")
}

#[test]
fn a_sum_starts_at_zero_with_terms_of_their_own() {
    let (one, three) = (learner(&config(1)), learner(&config(3)));
    assert_eq!(three.body_params(), 3 * one.body_params());
    assert_eq!(three.description(), "3 terms of kron 4×2 r 4, s = 8/4");
    let names: Vec<&str> = three.trained().iter().map(|(name, _)| name.as_str()).take(3).collect();
    let module = deltas(&three)[0].module();
    assert_eq!(names, ["theta", "theta1", "theta2"].map(|theta| format!("{module}.{theta}")));
    let adapter = three.adapters().expect("adapters").to_adapter().expect("an adapter");
    assert_eq!((adapter.modules(), adapter.layers().len()), (35, 105));
    for terms in adapter.layers().chunk_by(|one, next| one.module() == next.module()) {
        assert!(delta_weight(&adapter, terms[0].module()).iter().all(|v| *v == 0.0));
        let [first, second, third] = terms else { panic!("{} terms", terms.len()) };
        for (one, other) in [(first, second), (second, third), (first, third)] {
            assert!(one.theta().a() != other.theta().a() && one.theta().c() != other.theta().c());
        }
    }
    // One term has the initial values that it had without sums.
    let start = |learner: &Learner| deltas(learner)[0].theta().to_vec1::<f32>().expect("values");
    assert_eq!(start(&one), start(&three));
}

#[test]
fn a_budget_holds_for_all_terms_together() {
    // A rank of a term has 2140 parameters beside the 280 of A.
    for (terms, limit, want) in
        [(2, 2 * (280 + 3 * 2140), 3), (2, 2 * (280 + 3 * 2140) - 1, 2), (4, 20_000, 2)]
    {
        let mut config = config(terms);
        config.adapter.match_params = limit;
        let learner = learner(&config);
        assert_eq!(learner.body_params(), terms * (280 + want * 2140), "{terms} {limit}");
        assert!(deltas(&learner).iter().all(|delta| delta.op().shape.rank() == Some(want)));
    }
    let mut config = config(2);
    config.adapter.match_params = 4839;
    let (weights, data) = common::load(&config);
    let message = Learner::new(&config, &weights, &data).map(drop).expect_err("too few").to_string();
    let want = "adapter.match_params is 4839, but the smallest adapter of kron 4×2 r 1 has 4840 parameters";
    assert_eq!(message, want);
}

/// Training lowers the loss, checkpointing changes no bit of it, and the file has what was trained.
#[test]
fn a_sum_is_trained_and_saved() {
    for method in [Method::Kron, Method::Krona] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = config(2);
        config.adapter.method = method;
        (config.data.limit_train, config.train.batch, config.train.epochs, config.train.lr) =
            (16, 16, 10, 2e-3);
        let (weights, data) = common::load(&config);
        let output = OutputFolder { path: folder.path().join("run"), resume: false };
        let go = |config: &Config, output| {
            run(config, &weights, &data, output, &Stop::default(), &Progress::Hidden).expect("it runs")
        };
        let outcome = go(&config, Some(&output));
        let (first, last) = (outcome.steps[0].loss, outcome.steps[9].loss);
        assert!(last < 0.95 * first, "{method:?}: from {first} to {last}");
        let mut again = config.clone();
        again.train.checkpointing = true;
        assert_eq!(values(&outcome.learner), values(&go(&again, None).learner), "{method:?}");
        let saved = Adapter::read(output.path.join("adapter.safetensors")).expect("the adapter");
        let trained = outcome.learner.adapters().expect("adapters").to_adapter().expect("an adapter");
        assert_eq!(saved.layers(), trained.layers());
        let module = saved.layers()[0].module();
        let [one, other] = saved.terms(module) else { panic!("two terms") };
        assert_ne!(one.theta(), other.theta());
        assert!(delta_weight(&saved, module).iter().any(|v| *v != 0.0));
    }
}

#[test]
fn other_methods_have_one_term() {
    for method in [Method::Lora, Method::Lokr, Method::Head] {
        let mut config = config(2);
        config.adapter.method = method;
        let message = config.check().expect_err("refused").to_string();
        assert!(message.starts_with("adapter.terms is 2, but only the methods kron and krona"), "{message}");
    }
    config(16).check().expect("the largest sum");
}
