//! The choices of a question share its prefix: losses, scores and gradients are those of choices in rows of their own.

mod common;

use std::path::Path;

use candle_core::{Device, Tensor};
use kron_candle::{DropoutKey, Inject};
use kron_train::compute::Precision;
use kron_train::config::{Config, Method, Task};
use kron_train::data::{Dataset, Examples, Inputs, Question, Row, Tokens};
use kron_train::model::{Files, Weights, build, next_token_loss};
use kron_train::{Learner, Result};

const KEY: DropoutKey = DropoutKey { seed: 5, offset: 2 };

/// Relative error of a float32 sum through the model: five blocks of seven products with at most 172 terms, each of
/// which rounds by at most 2⁻²⁴ of the sum.
const ROUNDING: f32 = 5.0 * 7.0 * 172.0 / (1 << 24) as f32;

/// Draws ids below `vocabulary`.
fn ids(len: usize, seed: u32, vocabulary: u32) -> Vec<u32> {
    (0..len as u32).map(|i| ((i + 1) * 7919 + seed * 104_729) % 65_521 % vocabulary).collect()
}

/// Makes ragged questions: each with a prefix and its choices, by their lengths.
fn questions(vocabulary: u32) -> Vec<Question> {
    let row = |prefix: &[u32], own: &[u32], from: usize| -> Row { ([prefix, own].concat(), from) };
    let draw = |len, seed| ids(len, seed, vocabulary);
    let prefix = draw(11, 1);
    let ragged = [3, 1, 5, 2].map(|len| row(&prefix, &draw(len, 20 + len as u32), 11));
    // No common token at the start.
    let apart =
        [(6, 3), (9, 5), (4, 1)].map(|(len, from)| row(&[len % vocabulary], &draw(len as usize, len), from));
    // One choice begins with another, and two are equal; some scored tokens are in the common prefix.
    let nested = [row(&prefix, &[], 8), row(&prefix, &draw(4, 9), 9), row(&prefix, &draw(4, 9), 9)];
    let alone = [row(&draw(5, 30), &draw(2, 31), 5)];
    let short = [row(&draw(1, 40), &draw(3, 41), 1), row(&draw(1, 40), &draw(2, 42), 1)];
    let question = |rows: &[Row], answer| Question { rows: rows.to_vec(), answer };
    vec![
        question(&ragged, 2),
        question(&apart, 1),
        question(&nested, 0),
        question(&alone, 0),
        question(&short, 1),
    ]
}

fn config(method: Method) -> Config {
    let mut config = Config { task: Task::Choice, ..common::config(method) };
    config.adapter.factor = 4;
    config
}

/// Builds a learner whose adapters have an effect.
fn learner(config: &Config, examples: &Examples) -> Learner {
    let weights =
        Weights::read_for(&Files::find(&config.model).expect("a model"), config.compute).expect("weights");
    let data = Dataset { labels: vec![], train: examples.clone(), validation: None, test: None };
    let learner = Learner::new(config, &weights, &data).expect("it fits");
    for (_, group) in learner.trained().iter().filter(|_| config.adapter.method != Method::Full) {
        let n = group.var().elem_count() as u64;
        let values = Tensor::from_iter((0..n).map(|i| (i * 31 % 17) as f32 / 40.0 - 0.2), &Device::Cpu);
        group.var().set(&values.expect("values")).expect("θ");
    }
    learner
}

/// Computes loss and scores with each choice in a row of its own.
fn in_rows(
    learner: &Learner,
    questions: &[Question],
    key: Option<DropoutKey>,
) -> Result<(Tensor, Vec<Vec<f32>>)> {
    let all = questions.iter().flat_map(|question| &question.rows);
    let (rows, from): (Vec<&[u32]>, Vec<usize>) = all.map(|(ids, from)| (ids.as_slice(), *from)).unzip();
    let tokens = Tokens::new(&rows);
    let hidden = learner.body().hidden(&tokens, key)?;
    let scores = next_token_loss(learner.body(), &hidden, &tokens, &from)?.neg()?;
    let (mut start, mut losses, mut all) = (0, Vec::new(), Vec::new());
    for Question { rows, answer } in questions {
        let scores = scores.narrow(0, start, rows.len())?;
        losses.push(candle_nn::ops::log_softmax(&scores, 0)?.narrow(0, *answer, 1)?.neg()?);
        all.push(scores.to_vec1()?);
        start += rows.len();
    }
    Ok((Tensor::cat(&losses, 0)?.mean_all()?, all))
}

/// Returns the gradient of every trained parameter.
fn gradients(learner: &Learner, loss: &Tensor) -> Vec<Vec<f32>> {
    let grads = loss.backward().expect("gradients");
    let of =
        |group: &kron_candle::Group| grads.get(group.var()).expect("a gradient").flatten_all()?.to_vec1();
    learner.trained().iter().map(|(_, group)| of(group).expect("values")).collect()
}

fn near(name: &str, ours: &[f32], theirs: &[f32], rounding: f32) {
    let size = theirs.iter().fold(0f32, |size, value| size.max(value.abs()));
    assert!(size > 0.0 && ours.len() == theirs.len(), "{name}");
    for (a, b) in ours.iter().zip(theirs) {
        assert!((a - b).abs() <= rounding * size, "{name}: {a} and {b} of {size}");
    }
}

/// Compares a step and an evaluation with those in rows; returns the gradients.
fn agree(config: &Config, all: &[Question]) -> Vec<Vec<f32>> {
    let examples = Examples::Questions(all.to_vec());
    let learner = learner(config, &examples);
    let which: Vec<usize> = (0..all.len()).collect();
    let (loss, tokens) = learner.loss(&examples, &which, Some(KEY)).expect("a loss");
    let (expected, _) = in_rows(&learner, all, Some(KEY)).expect("a loss");
    let longest: usize = all.iter().flat_map(|question| &question.rows).map(|(ids, _)| ids.len()).sum();
    assert!(tokens < longest, "{tokens} of {longest}");
    let value = |loss: &Tensor| [loss.to_scalar::<f32>().expect("a value")];
    near("loss", &value(&loss), &value(&expected), ROUNDING);
    let (ours, theirs) = (gradients(&learner, &loss), gradients(&learner, &expected));
    assert!(ours.len() > 1);
    for (((name, _), ours), theirs) in learner.trained().iter().zip(&ours).zip(&theirs) {
        near(name, ours, theirs, ROUNDING);
    }
    let (expected, scores) = in_rows(&learner, all, None).expect("scores");
    let inputs = Inputs::Questions(all.iter().map(|question| question.rows.clone()).collect());
    for batch in [1, 2, 16] {
        let predicted = learner.predict(&inputs, 0..all.len(), batch).expect("scores");
        predicted.iter().zip(&scores).for_each(|(a, b)| near("scores", a, b, ROUNDING));
        let score = learner.score(&examples, batch).expect("a score");
        near("evaluation", &[score.loss as f32], &value(&expected), ROUNDING);
    }
    ours
}

#[test]
fn every_method_has_the_losses_and_gradients_of_rows() {
    for method in [Method::Kron, Method::Lora, Method::Krona, Method::Lokr, Method::Full] {
        agree(&config(method), &questions(512));
    }
    // The adapters of candle's graph.
    let mut unfused = config(Method::Kron);
    unfused.adapter.fused = false;
    agree(&unfused, &questions(512));
}

#[test]
fn checkpointing_changes_no_bit() {
    let mut config = config(Method::Kron);
    let keeping = agree(&config, &questions(512));
    config.train.checkpointing = true;
    assert_eq!(agree(&config, &questions(512)), keeping);
}

#[test]
fn a_quantised_base_has_them_too() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny_llama.gguf");
    for method in [Method::Kron, Method::Lora] {
        let mut config = config(method);
        (config.model, config.adapter.a_out) = (path.clone(), 2);
        agree(&config, &questions(4));
    }
}

/// Half precision takes the ops that a GPU takes; a rounding is 2⁻¹¹, and a block has about ten of them in a row.
#[test]
fn the_ops_of_other_devices_have_the_same_losses() {
    let mut config = config(Method::Kron);
    config.compute.precision = Precision::F16;
    let all = questions(512);
    let examples = Examples::Questions(all.clone());
    let learner = learner(&config, &examples);
    for key in [None, Some(KEY)] {
        let (ours, _) = learner.loss(&examples, &[0, 1, 2, 3, 4], key).expect("a loss");
        let (theirs, _) = in_rows(&learner, &all, key).expect("a loss");
        let value = |loss: Tensor| [loss.to_scalar::<f32>().expect("a value")];
        near("loss", &value(ours), &value(theirs), 5.0 * 10.0 / 2048.0);
    }
}

/// A mask is drawn for each row, so dropout keeps the rows; an evaluation has none.
#[test]
fn dropout_keeps_the_rows() {
    let mut config = config(Method::Kron);
    config.adapter.dropout = 0.4;
    let all = questions(512);
    let examples = Examples::Questions(all.clone());
    let learner = learner(&config, &examples);
    let count = |key| learner.loss(&examples, &[0, 1, 2, 3, 4], key).expect("a loss").1;
    let rows: usize = all.iter().flat_map(|question| &question.rows).map(|(ids, _)| ids.len()).sum();
    assert_eq!(count(Some(KEY)), rows);
    assert!(count(None) < rows - 50, "{} of {rows}", count(None));
    let (loss, _) = learner.loss(&examples, &[0, 1, 2, 3, 4], Some(KEY)).expect("a loss");
    let (expected, _) = in_rows(&learner, &all, Some(KEY)).expect("a loss");
    assert_eq!(loss.to_scalar::<f32>().expect("a value"), expected.to_scalar::<f32>().expect("a value"));
}

/// The positions are those of the texts: 5 choices of 30 tokens after 470 fit into 512 positions, and 43 do not.
#[test]
fn a_row_may_be_longer_than_the_context() {
    let prefix = ids(470, 1, 512);
    let question = |len| Question {
        rows: (0..5).map(|i| ([prefix.clone(), ids(len, 50 + i, 512)].concat(), 470)).collect(),
        answer: 3,
    };
    agree(&config(Method::Lora), &[question(30)]);
    let examples = Examples::Questions(vec![question(43)]);
    let learner = learner(&config(Method::Lora), &examples);
    let error = learner.loss(&examples, &[0], None).expect_err("513 tokens").to_string();
    assert!(error.starts_with("a text has 513 tokens, but the model has 512 positions"), "{error}");
}

#[test]
fn an_encoder_reads_each_text_alone() {
    let weights = Weights::read(&Files::find(&common::data("models/bert")).expect("files")).expect("weights");
    let body = build(&weights, &Inject::nothing()).expect("a body");
    let tokens = Tokens::sharing(&[vec![vec![1, 2, 3], vec![1, 2, 4]]]);
    let error = body.hidden(&tokens, None).expect_err("a shared prefix").to_string();
    assert!(error.starts_with("texts share a prefix or a row"), "{error}");
}
