//! Real text, a real model, a minute: an adapter beats a new head alone.

mod common;

use kron_train::Progress;
use kron_train::config::Method;
use kron_train::run::{Stop, run};

fn accuracy(method: Method) -> (f64, usize) {
    let mut config = common::config(method);
    config.data.limit_train = 0;
    config.data.limit_eval = 140;
    config.train.epochs = 4;
    config.train.batch = 16;
    let (weights, data) = common::load(&config);
    let outcome = run(&config, &weights, &data, None, &Stop::default(), &Progress::Hidden).expect("it runs");
    let accuracy = outcome.validation.and_then(|score| score.accuracy).expect("an accuracy");
    (accuracy, outcome.learner.body_params())
}

#[test]
fn kron_lora_beats_a_new_head_on_real_text() {
    let (head, none) = accuracy(Method::Head);
    let (kron, params) = accuracy(Method::Kron);
    assert_eq!(none, 0);
    assert!(params > 1000 && params < 20_000, "{params} parameters");
    // Guessing gives one in seven.
    assert!(head > 0.3, "head alone: {head}");
    assert!(kron > head + 0.05, "Kron-LoRA {kron}, head alone {head}");
}
