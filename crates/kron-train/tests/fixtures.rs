//! The pretrained models reproduce the outputs of their reference implementations.

mod common;

use std::path::Path;

use candle_core::{Device, IndexOp, Tensor};
use common::{data, minilm};
use kron_candle::Inject;
use kron_train::data::{Tokenizer, Tokens};
use kron_train::model::{Attention, Bert, Config, Files, Weights, build, next_token_loss, pool};
use serde::Deserialize;

#[derive(Deserialize)]
struct Stories {
    prompt: String,
    prompt_ids: Vec<u32>,
    last_logits: Vec<f32>,
    greedy_120_ids: Vec<u32>,
    greedy_120_text: String,
    encode_text: String,
    encode_ids: Vec<u32>,
    nll_of_greedy_text: f64,
}

fn read<T: for<'a> Deserialize<'a>>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(data(name)).expect("a fixture")).expect("its form")
}

fn farthest(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_small_decoder_tells_the_story() {
    let want: Stories = read("stories260k_reference.json");
    let files = Files::find(&data("stories260K.bin")).expect("a model");
    let tokenizer = Tokenizer::read(&files.tokenizer).expect("a tokenizer");
    assert_eq!(tokenizer.encode(&want.encode_text, 100).expect("a text"), want.encode_ids);
    assert_eq!(tokenizer.decode(&want.encode_ids).expect("ids"), want.encode_text);
    assert_eq!(tokenizer.encode(&want.prompt, 100).expect("a text"), want.prompt_ids);

    let weights = Weights::read(&files).expect("weights");
    let body = build(&weights, &Inject::nothing()).expect("a body");
    let logits = |ids: &[u32]| -> Tensor {
        let hidden = body.hidden(&Tokens::new(&[ids]), None).expect("states");
        body.logits(&hidden.i((0, ids.len() - 1)).and_then(|t| t.unsqueeze(0)).expect("the last"))
            .expect("logits")
            .expect("a decoder")
    };
    let last: Vec<f32> = logits(&want.prompt_ids).squeeze(0).and_then(|t| t.to_vec1()).expect("values");
    assert!(farthest(&last, &want.last_logits) < 1e-4, "{}", farthest(&last, &want.last_logits));

    let mut ids = want.prompt_ids.clone();
    while ids.len() < want.greedy_120_ids.len() {
        ids.push(logits(&ids).argmax(1).and_then(|t| t.squeeze(0)?.to_scalar()).expect("an id"));
    }
    assert_eq!(ids, want.greedy_120_ids);
    assert_eq!(tokenizer.decode(&ids).expect("ids"), want.greedy_120_text);

    let tokens = Tokens::new(&[&ids]);
    let hidden = body.hidden(&tokens, None).expect("states");
    let loss = next_token_loss(&*body, &hidden, &tokens, &[1]).and_then(|t| t.squeeze(0)?.to_scalar::<f32>());
    assert!((f64::from(loss.expect("a loss")) - want.nll_of_greedy_text).abs() < 1e-4);
}

/// Padding is masked: a text alone and in a batch give the same vector.
#[test]
fn padding_changes_nothing() {
    let files = Files::find(&data("stories260K.bin")).expect("a model");
    let body = build(&Weights::read(&files).expect("weights"), &Inject::nothing()).expect("a body");
    let (short, long): (Vec<u32>, Vec<u32>) = ((1..9).collect(), (3..40).collect());
    let vector = |tokens: &Tokens| {
        let hidden = body.hidden(tokens, None).expect("states");
        pool(body.attention(), &hidden, tokens).and_then(|t| t.i(0)?.to_vec1::<f32>()).expect("a vector")
    };
    let (alone, padded) = (vector(&Tokens::new(&[&short])), vector(&Tokens::new(&[&short, &long])));
    assert!(farthest(&alone, &padded) < 1e-5 && alone.iter().any(|v| v.abs() > 0.1));
}

#[derive(Deserialize)]
struct Reference {
    ids: Vec<Vec<u32>>,
    values: Vec<Vec<f32>>,
    #[serde(default)]
    encoded: Vec<Encoded>,
}

#[derive(Deserialize)]
struct Encoded {
    text: String,
    ids: Vec<u32>,
    cut: Vec<u32>,
}

/// Covers a tokenizer.json of BERT's kind and one of LLaMA's, on whole texts and on texts truncated to six tokens.
#[test]
fn tokenizers_truncate_the_text_and_keep_the_special_tokens() {
    for name in ["bert", "llama"] {
        let want: Reference = read(&format!("models/{name}/reference.json"));
        let tokenizer = Tokenizer::read(&data("models").join(name).join("tokenizer.json")).expect(name);
        assert!(want.encoded.len() == 3 && tokenizer.check_fits(61).is_ok(), "{name}");
        for case in &want.encoded {
            assert_eq!(tokenizer.encode(&case.text, 60).expect("a text"), case.ids, "{name}: {}", case.text);
            assert_eq!(tokenizer.encode(&case.text, 6).expect("a text"), case.cut, "{name}: {}", case.text);
            let inner = tokenizer.encode_more(&case.text).expect("a text");
            assert!(case.ids.windows(inner.len()).any(|part| part == inner), "{name}: {}", case.text);
            assert!(inner.len() < case.ids.len(), "{name}: {}", case.text);
        }
    }
}

/// The earliest checkpoints of BERT name a norm's weight and bias gamma and beta.
#[test]
fn norms_with_the_earliest_names_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let from = data("models/bert");
    std::fs::copy(from.join("config.json"), folder.path().join("config.json")).expect("a file");
    let tensors =
        candle_core::safetensors::load(from.join("model.safetensors"), &Device::Cpu).expect("a model");
    let old = |name: &str| match name.contains("LayerNorm") {
        true => {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        }
        false => name.to_owned(),
    };
    let renamed = tensors.iter().map(|(name, tensor)| (old(name), tensor.clone())).collect();
    candle_core::safetensors::save(&renamed, folder.path().join("model.safetensors")).expect("written");
    let hidden = |model: &Path| -> Vec<f32> {
        let files = Files { tokenizer: model.join("none"), model: model.into() };
        let body = build(&Weights::read(&files).expect("weights"), &Inject::nothing()).expect("a body");
        let hidden = body.hidden(&Tokens::new(&[[3u32, 9, 12]]), None);
        hidden.and_then(|t| t.flatten_all()?.to_vec1()).expect("states")
    };
    assert_eq!(hidden(folder.path()), hidden(&from));
}

/// Covers folders as transformers writes them: both encoders with a classifier's names, decoders in shards, scaled
/// rotations, biases, wide heads, a tied output matrix, three dtypes.
#[test]
fn every_kind_of_folder_computes_what_transformers_does() {
    for name in ["distilbert", "bert", "llama", "llama3", "mistral"] {
        let model = data("models").join(name);
        let want: Reference = read(&format!("models/{name}/reference.json"));
        let weights = Weights::read(&Files { tokenizer: model.join("none"), model }).expect(name);
        let body = build(&weights, &Inject::nothing()).expect(name);
        let tokens = Tokens::new(&want.ids);
        let hidden = body.hidden(&tokens, None).expect(name);
        let out = body.logits(&hidden).expect(name).unwrap_or(hidden);
        for (row, want) in want.values.iter().enumerate() {
            let got =
                out.i(row).and_then(|t| t.narrow(0, 0, tokens.lens[row])?.flatten_all()?.to_vec1::<f32>());
            let off = farthest(&got.expect(name), want);
            assert!(off < 1e-4, "{name}: text {row} is off by {off}");
            assert!(want.iter().any(|v| v.abs() > 0.5), "{name}: text {row} has only small values");
        }
        let positions = if name == "mistral" { 20 } else { 40 };
        assert_eq!(weights.positions(), positions, "{name}");
    }
}

#[derive(Deserialize)]
struct MiniLm {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    input_ids: Vec<u32>,
    layer_means: Vec<f32>,
    layer_l2: Vec<f32>,
    cls_first8: Vec<f32>,
    embedding: Vec<f32>,
}

#[test]
fn minilm_where_it_was_fetched() -> kron_train::Result<()> {
    let Some(folder) = minilm() else {
        eprintln!("skipped: MiniLM is not here, scripts/fetch-minilm.sh fetches it");
        return Ok(());
    };
    let files = Files::find(&folder)?;
    let (weights, tokenizer) = (Weights::read(&files)?, Tokenizer::read(&files.tokenizer)?);
    let Config::Bert(config) = &weights.config else { panic!("MiniLM is a BERT") };
    let all: MiniLm = read("minilm_reference.json");
    let ids: Vec<Vec<u32>> =
        all.cases.iter().map(|c| tokenizer.encode(&c.text, 256)).collect::<Result<_, _>>()?;
    let tokens = Tokens::new(&ids);
    let states = weights.with(|vb| Bert::new(config, &Inject::nothing(), vb))?.states(&tokens, None)?;
    let last = &states[states.len() - 1];
    let pooled = pool(Attention::Bidirectional, last, &tokens)?;
    for (row, case) in all.cases.iter().enumerate() {
        assert_eq!(ids[row], case.input_ids, "{}", case.text);
        for (i, state) in states.iter().enumerate() {
            let state = state.i(row)?.narrow(0, 0, tokens.lens[row])?;
            let mean = state.mean_all()?.to_scalar::<f32>()?;
            let length = state.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>()?;
            assert!((mean - case.layer_means[i]).abs() < 1e-4, "state {i}: mean {mean}");
            assert!((length / case.layer_l2[i] - 1.0).abs() < 1e-4, "state {i}: length {length}");
        }
        let first: Vec<f32> = last.i((row, 0))?.narrow(0, 0, 8)?.to_vec1()?;
        assert!(farthest(&first, &case.cls_first8) < 1e-4);
        let vector = pooled.i(row)?;
        let vector = vector.broadcast_div(&vector.sqr()?.sum_all()?.sqrt()?)?.to_vec1::<f32>()?;
        assert!(farthest(&vector, &case.embedding) < 1e-4, "{}", farthest(&vector, &case.embedding));
    }
    Ok(())
}
