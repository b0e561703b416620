//! Every method on the small decoder: its trained parameters, their number, and its losses.

mod common;

use kron_candle::DropoutKey;
use kron_train::config::Method;
use kron_train::run::{Stop, run};
use kron_train::{Learner, Progress};

fn learner(change: impl Fn(&mut kron_train::Config)) -> Learner {
    let mut config = common::config(Method::Kron);
    change(&mut config);
    let (weights, data) = common::load(&config);
    Learner::new(&config, &weights, &data).expect("it fits")
}

#[test]
fn every_method_lowers_the_loss_and_none_trains_nothing() {
    for method in [Method::Head, Method::Full, Method::Lora, Method::Kron, Method::Krona, Method::Lokr] {
        let mut config = common::config(method);
        config.adapter.factor = 4;
        // One batch again and again, so that the losses of the steps are comparable.
        (config.data.limit_train, config.train.batch, config.train.epochs, config.train.lr) =
            (16, 16, 10, 2e-3);
        let (weights, data) = common::load(&config);
        let outcome =
            run(&config, &weights, &data, None, &Stop::default(), &Progress::Hidden).expect("it runs");
        assert_eq!(outcome.steps.len(), 10, "{method:?}");
        let (first, last) = (outcome.steps[0].loss, outcome.steps[9].loss);
        assert!(last < 0.95 * first, "{method:?}: from {first} to {last}");
    }
    let config = common::config(Method::None);
    let (weights, data) = common::load(&config);
    let outcome = run(&config, &weights, &data, None, &Stop::default(), &Progress::Hidden).expect("it runs");
    assert!(outcome.steps.is_empty() && outcome.learner.trained().is_empty());
}

/// An evaluation keeps no autograd graph over the blocks, so parameters inside them get no gradient.
#[test]
fn without_a_key_nothing_in_the_body_has_a_gradient() {
    for method in [Method::Kron, Method::Full] {
        let config = common::config(method);
        let (weights, data) = common::load(&config);
        let learner = Learner::new(&config, &weights, &data).expect("it fits");
        let reached = |dropout| -> Vec<&str> {
            let (loss, _) = learner.loss(&data.train, &[0, 1, 2], dropout).expect("a loss");
            let grads = loss.backward().expect("gradients");
            let trained = learner.trained().iter();
            trained.filter(|(_, group)| grads.get(group.var()).is_some()).map(|(name, _)| &**name).collect()
        };
        let (evaluation, step) = (reached(None), reached(Some(DropoutKey { seed: 1, offset: 0 })));
        assert!(evaluation.iter().all(|name| !name.contains("layers")), "{evaluation:?}");
        assert!(step.len() > 30 && evaluation.len() < 5, "{step:?}");
    }
}

/// The model has five blocks of q, o: 64 → 64; k, v: 64 → 32; gate, up: 64 → 172; down: 172 → 64.
#[test]
fn parameters_are_counted_by_hand() {
    let lora = |rank: usize| rank * 5 * (2 * 128 + 2 * 96 + 3 * 236);
    for rank in [1, 4, 8] {
        let learner = learner(|c| (c.adapter.method, c.adapter.rank) = (Method::Lora, rank));
        assert_eq!(learner.body_params(), lora(rank));
    }
    // A is 4 × 2 everywhere: every width is a multiple.
    let kron = 5 * (7 * 8 + 4 * (2 * (16 + 32) + 2 * (8 + 32) + 2 * (43 + 32) + (16 + 86)));
    assert_eq!(learner(|_| ()).body_params(), kron);
    assert_eq!(learner(|c| c.adapter.method = Method::Head).body_params(), 0);
    let all = learner(|c| c.adapter.method = Method::Full).body_params();
    let matrices = 5 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 172);
    assert_eq!(all, 512 * 64 + matrices + 11 * 64);
}

/// A rank of LoRA has 5780 parameters; one of Kron-LoRA has 2140, beside the 280 of A.
#[test]
fn a_budget_is_met_by_the_largest_adapter_within_it() {
    let params = |method, limit| {
        learner(|c| (c.adapter.method, c.adapter.match_params) = (method, limit)).body_params()
    };
    for (method, limit, want) in [
        (Method::Lora, 17_340, 17_340),
        (Method::Lora, 17_339, 11_560),
        (Method::Kron, 280 + 9 * 2140, 280 + 9 * 2140),
        (Method::Kron, 279 + 9 * 2140, 280 + 8 * 2140),
    ] {
        assert_eq!(params(method, limit), want, "{method:?} {limit}");
    }
    for method in [Method::Krona, Method::Lokr] {
        let n = params(method, 20_000);
        assert!((14_000..=20_000).contains(&n), "{method:?}: {n}");
        assert!(params(method, n as u64 - 1) < n);
    }
    let mut config = common::config(Method::Lora);
    config.adapter.match_params = 5779;
    let (weights, data) = common::load(&config);
    let message = Learner::new(&config, &weights, &data).map(drop).expect_err("too few").to_string();
    let want = "adapter.match_params is 5779, but the smallest adapter of lora r 1 has 5780 parameters";
    assert_eq!(message, want);
}

#[test]
fn a_scale_holds_for_every_rank() {
    for (method, rank, want) in
        [(Method::Lora, 3, "lora r 3, s = 12/3"), (Method::Kron, 5, "kron 4×2 r 5, s = 20/5")]
    {
        let learner = learner(|c| {
            (c.adapter.method, c.adapter.rank, c.adapter.scale) = (method, rank, 4.0);
        });
        assert_eq!(learner.description(), want);
    }
}

/// The unfused path differs by rounding alone: by at most three times the largest difference that another order of
/// the same sums makes, which micro-batches give.
#[test]
fn the_unfused_path_trains_to_the_same_values() {
    let one = [Method::Lora, Method::Kron, Method::Krona, Method::Lokr].map(|method| (method, 1));
    for (method, terms) in one.into_iter().chain([(Method::Kron, 2)]) {
        let mut config = common::config(method);
        (config.train.epochs, config.data.validation, config.adapter.factor) = (1, None, 4);
        config.adapter.terms = terms;
        let (weights, data) = common::load(&config);
        let values = |learner: &Learner| -> Vec<f32> {
            let all = learner.trained().iter().map(|(_, group)| group.var().flatten_all()?.to_vec1());
            all.collect::<candle_core::Result<Vec<_>>>().expect("values").concat()
        };
        let go = |fused: bool, micro: usize| {
            let mut config = config.clone();
            (config.adapter.fused, config.train.micro_batch) = (fused, micro);
            let outcome = run(&config, &weights, &data, None, &Stop::default(), &Progress::Hidden);
            let learner = outcome.expect("it runs").learner;
            assert_eq!(learner.description().ends_with(", unfused"), !fused);
            values(&learner)
        };
        let distance =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let fused = go(true, 0);
        let order = (1..=7).map(|micro| distance(&fused, &go(true, micro))).fold(0.0, f64::max);
        let apart = distance(&fused, &go(false, 0));
        let moved = distance(&fused, &values(&Learner::new(&config, &weights, &data).expect("it fits")));
        assert!(0.0 < apart && apart <= 3.0 * order, "{method:?}: {apart} apart, orders {order}");
        assert!(order < 5e-3 * moved, "{method:?}: orders are {order} apart, but it moved by {moved} alone");
    }
}
