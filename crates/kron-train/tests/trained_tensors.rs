//! Tensors that an adapter brings along are used in the place of the model's, as in a model that has them for its own.

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{IndexOp, Tensor};
use common::data;
use kron_adapter::{Layer, Scaling};
use kron_candle::{Adapter, IfExists, Inject, TrainedTensor};
use kron_core::{KronShape, LayerDims, Theta};
use kron_train::Result;
use kron_train::compute::{Compute, Precision};
use kron_train::config::{Config as Settings, Task};
use kron_train::data::{Tokenizer, Tokens};
use kron_train::inference::{GenerateOptions, TrainedModel};
use kron_train::model::{Config, Files, Weights, build};
use kron_train::run::read_adapter;

const NORM: &str = "model.norm.weight";
const GATE: &str = "model.layers.0.mlp.gate_proj.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn read(model: &Path, precision: Precision) -> Weights {
    let files = Files { model: model.into(), tokenizer: PathBuf::new() };
    Weights::read_for(&files, Compute { precision, ..Compute::default() }).expect("weights")
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// Values like those of weights, another sequence for every name.
fn values(name: &str, count: usize) -> Vec<f32> {
    let start = name.len() as f32;
    (0..count).map(|i| ((i as f32 + start) * 0.7).sin() * 0.4).collect()
}

fn whole(name: &str, shape: &[usize]) -> TrainedTensor {
    TrainedTensor::new(name, shape, values(name, shape.iter().product())).expect("a tensor")
}

/// Makes an adapter of one layer, with trained tensors.
fn adapter(module: &str, [d_out, d_in]: [usize; 2], trained: Vec<TrainedTensor>) -> Adapter {
    let shape = KronShape::lora(LayerDims { d_out, d_in }, 2).expect("a shape");
    let theta = Theta::random(shape, 5);
    let layer = Layer::new(module, Scaling::plain(1.0).expect("a scale"), theta).expect("a layer");
    Adapter::new(vec![layer]).and_then(|adapter| adapter.with_trained_tensors(trained)).expect("an adapter")
}

fn written(folder: &Path, adapter: &Adapter) -> PathBuf {
    let path = folder.join("adapter.safetensors");
    adapter.write(&path, IfExists::Replace).expect("room");
    path
}

/// Returns the logits of a decoder, or the hidden states of an encoder.
fn outputs(weights: &Weights, adapter: Adapter) -> Vec<f32> {
    let adapter = adapter.with_trained_tensors(Vec::new()).expect("factors alone");
    let inject = Inject::trained(adapter);
    let body = build(weights, &inject).expect("a body");
    inject.finish().expect("its layer");
    let hidden = body.hidden(&Tokens::new(&[&[3, 1, 2, 2, 0]]), None).expect("states");
    let all: Tensor = body.logits(&hidden).expect("logits").unwrap_or(hidden);
    all.i(0).and_then(|all| all.flatten_all()?.to_vec1()).expect("values")
}

/// Returns the model with these tensors as its own, in float32, and with an output head of its own if one is given.
fn with_own(weights: &Weights, own: &[(&str, Tensor)]) -> Weights {
    let (_, vars) = weights.trained().expect("memory");
    let mut tensors: HashMap<_, _> =
        vars.into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
    let mut config = weights.config.clone();
    if let Config::Decoder(decoder) = &mut config
        && own.iter().any(|(name, _)| *name == HEAD)
    {
        decoder.tie_word_embeddings = false;
    }
    tensors.extend(own.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())));
    Weights::new(config, tensors)
}

fn tensor(trained: &TrainedTensor) -> Tensor {
    Tensor::from_slice(trained.values(), trained.shape(), &candle_core::Device::Cpu).expect("memory")
}

/// Fails unless an adapter's outputs are those of the model with `own` tensors and the factors, and not the model's.
fn check(weights: &Weights, adapter: &Adapter, own: &[(&str, Tensor)], tolerance: f32) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = written(folder.path(), adapter);
    let got = read_adapter(&path, Path::new("the model"), weights).expect("a place for all");
    assert_eq!(got.notes, [] as [&str; 0]);
    let [got, want, plain] =
        [&got.weights, &with_own(weights, own), weights].map(|w| outputs(w, adapter.clone()));
    let most = want.iter().fold(0f32, |most, value| most.max(value.abs()));
    let difference = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0f32, |d, (a, b)| d.max((a - b).abs()));
    assert_eq!(got.len(), want.len());
    assert!(difference(&got, &want) <= tolerance * most, "{} of {most}", difference(&got, &want));
    assert!(difference(&got, &plain) > 0.01 * most, "the trained tensors change nothing");
}

/// Llama untied in float32, tied in bf16 (kept as blocks), tied in quantised blocks, and rounded to bf16 here.
#[test]
fn a_decoder_uses_them_whatever_its_weights_are() {
    let models = data("models");
    for (model, precision, tied, tolerance) in [
        (models.join("llama"), Precision::F32, false, 1e-5),
        (models.join("llama3"), Precision::F32, true, 1e-5),
        (golden("tiny_llama.gguf"), Precision::F32, true, 1e-5),
        (models.join("llama3"), Precision::Bf16, true, 0.02),
    ] {
        let weights = read(&model, precision);
        let (_, vars) = weights.trained().expect("memory");
        let dims = |name: &str| vars[name].dims().to_vec();
        let module = "model.layers.0.self_attn.q_proj";
        let &[d_out, d_in] = &dims(&format!("{module}.weight"))[..] else { panic!("a matrix") };
        let [vocabulary, hidden] = [weights.vocabulary(), weights.hidden()];
        let embedding = || vars[EMBEDDING].as_tensor().clone();
        let with = |trained: &[TrainedTensor]| adapter(module, [d_out, d_in], trained.to_vec());
        let check = |trained: &[TrainedTensor], own: &[(&str, Tensor)]| {
            check(&weights, &with(trained), own, tolerance);
        };

        let [norm, gate] = [NORM, GATE].map(|name| whole(name, &dims(name)));
        check(&[norm.clone(), gate.clone()], &[(NORM, tensor(&norm)), (GATE, tensor(&gate))]);

        let head = whole(HEAD, &[vocabulary, hidden]);
        check(std::slice::from_ref(&head), &[(HEAD, tensor(&head))]);

        // A head that was the embedding stays what it was.
        let words = whole(EMBEDDING, &[vocabulary, hidden]);
        let before = if tied { embedding() } else { vars[HEAD].as_tensor().clone() };
        check(std::slice::from_ref(&words), &[(EMBEDDING, tensor(&words)), (HEAD, before)]);

        let rows = |name| TrainedTensor::of_rows(name, vec![2, 0], hidden, values(name, 2 * hidden));
        let rows = rows(EMBEDDING).expect("rows");
        let changed = |name: &str, rows: &TrainedTensor| {
            let [second, first] = [0, 1].map(|i| tensor(rows).narrow(0, i, 1).expect("a row"));
            let matrix = vars[name].as_tensor();
            let [middle, rest] =
                [matrix.narrow(0, 1, 1), matrix.narrow(0, 3, vocabulary - 3)].map(|rows| rows.expect("rows"));
            Tensor::cat(&[first, middle, second, rest], 0).expect("memory")
        };
        check(std::slice::from_ref(&rows), &[(EMBEDDING, changed(EMBEDDING, &rows))]);
        // Under the head's name the rows are those of both, too, if both are one.
        let of_head = rows.renamed(HEAD).expect("a name");
        let name = if tied { EMBEDDING } else { HEAD };
        check(&[of_head], &[(name, changed(name, &rows))]);
    }
}

#[test]
fn an_adapter_of_a_tied_head_changes_the_head_alone() {
    let weights = read(&data("models/llama3"), Precision::F32);
    let (_, vars) = weights.trained().expect("memory");
    let norm = whole(NORM, vars[NORM].dims());
    let adapter = adapter("lm_head", [weights.vocabulary(), weights.hidden()], vec![norm.clone()]);
    let own = [(NORM, tensor(&norm)), (HEAD, vars[EMBEDDING].as_tensor().clone())];
    let folder = tempfile::tempdir().expect("a folder");
    let path = written(folder.path(), &adapter);
    let got = read_adapter(&path, Path::new("the model"), &weights).expect("a head of its own").weights;
    let [got, want] = [&got, &with_own(&weights, &own)].map(|weights| outputs(weights, adapter.clone()));
    let most = want.iter().fold(0f32, |most, value| most.max(value.abs()));
    assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() <= 1e-5 * most));
}

/// A classifier of PEFT for BERT has `bert.` in its names, and a head that the encoder lacks.
#[test]
fn names_follow_those_of_the_layers_and_a_foreign_head_is_noted() {
    let weights = read(&data("models/bert"), Precision::F32);
    let (_, vars) = weights.trained().expect("memory");
    let [norm, bias] =
        ["encoder.layer.1.output.LayerNorm.weight", "encoder.layer.0.attention.self.query.bias"];
    let trained = [norm, bias].map(|name| whole(name, vars[name].dims()));
    let own = trained.clone().map(|trained| tensor(&trained));
    let own: Vec<_> = [norm, bias].into_iter().zip(own).collect();
    let module = "encoder.layer.0.attention.self.query";
    let dims = [weights.hidden(), weights.hidden()];
    check(&weights, &adapter(module, dims, trained.to_vec()), &own, 1e-5);

    let renamed =
        |trained: &TrainedTensor| trained.renamed(format!("bert.{}", trained.name())).expect("a name");
    let mut trained: Vec<_> = trained.iter().map(renamed).collect();
    trained.extend([whole("classifier.weight", &[3, 24]), whole("classifier.bias", &[3])]);
    let prefixed = adapter(&format!("bert.{module}"), dims, trained);
    let folder = tempfile::tempdir().expect("a folder");
    let got =
        read_adapter(&written(folder.path(), &prefixed), Path::new("the model"), &weights).expect("places");
    assert_eq!(
        got.notes,
        [
            "bert. was taken off the adapter's names: the model's lack it",
            "trained tensors of the adapter are not used: classifier.bias and 1 more"
        ]
    );
    let want = outputs(&with_own(&weights, &own), got.adapter.clone());
    assert_eq!(outputs(&got.weights, got.adapter), want);

    // A block that the model lacks is no foreign head.
    let further = adapter(
        &format!("bert.{module}"),
        dims,
        vec![whole("bert.encoder.layer.9.output.LayerNorm.weight", &[24])],
    );
    let error = read_adapter(&written(folder.path(), &further), Path::new("the model"), &weights);
    let error = error.expect_err("no such block").to_string();
    assert!(error.contains("encoder.layer.9.output.LayerNorm.weight matches no tensor"), "{error}");
}

#[test]
fn a_tensor_without_a_place_is_refused() {
    let weights = read(&data("models/llama"), Precision::F32);
    let folder = tempfile::tempdir().expect("a folder");
    for (name, shape, says) in [
        (NORM, &[23][..], "model.norm.weight is [24], but the trained tensor is [23]"),
        ("norm.weight", &[24], "norm.weight matches no tensor; near are model.norm.weight"),
        ("a.model.norm.weight", &[24], "a.model.norm.weight matches no tensor; near are model.norm.weight"),
        ("model.layers.0.self_attn.q_proj.bias", &[24], "q_proj.bias matches no tensor"),
        ("model.layers.7.input_layernorm.weight", &[24], "model.layers.7.input_layernorm.weight matches no"),
        (HEAD, &[24, 61], "lm_head.weight is [61, 24], but the trained tensor is [24, 61]"),
    ] {
        let adapter = adapter("model.layers.0.self_attn.q_proj", [24, 24], vec![whole(name, shape)]);
        let error = read_adapter(&written(folder.path(), &adapter), Path::new("the model"), &weights);
        let error = error.expect_err("no place").to_string();
        assert!(error.starts_with("the model: ") && error.contains(says), "{error}\nwithout\n{says}");
    }
    let rows = TrainedTensor::of_rows(EMBEDDING, vec![61], 24, vec![0.5; 24]).expect("a row");
    let adapter = adapter("model.layers.0.self_attn.q_proj", [24, 24], vec![rows]);
    let error = read_adapter(&written(folder.path(), &adapter), Path::new("the model"), &weights);
    assert!(error.expect_err("no row").to_string().contains("has 61 rows, but one of row 61 was trained"));
}

/// The programs' way: an adapter with trained tokens of the small decoder, whose head is its embedding.
#[test]
fn a_trained_model_generates_with_them() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    let model = data("stories260K.bin");
    let mut settings = Settings { model: model.clone(), task: Task::Lm, ..Settings::default() };
    settings.data.train = "-".into();
    let files = Files::find(&model)?;
    let weights = Weights::read(&files)?;
    let text = |weights: &Weights, adapter: Option<&Path>| -> Result<Vec<u32>> {
        let model = TrainedModel::new(&settings, weights, Tokenizer::read(&files.tokenizer)?, adapter, None)?;
        let options = GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };
        Ok(model.generator(&options)?.text("Once upon a time", 0)?.finish()?.ids)
    };
    let module = "model.layers.0.self_attn.q_proj";
    let token = text(&weights, None)?[0];
    // Without its row in the embedding, the first token's logit is 0.
    let row = TrainedTensor::of_rows(
        EMBEDDING,
        vec![token as usize],
        weights.hidden(),
        vec![0.0; weights.hidden()],
    );
    let with = adapter(module, [weights.hidden(), weights.hidden()], vec![row.expect("a row")]);
    let got = text(&weights, Some(&written(folder.path(), &with)))?;
    assert!(!got.contains(&token), "{token} in {got:?}");
    Ok(())
}
