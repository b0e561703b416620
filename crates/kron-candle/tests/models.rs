//! The models beside those of candle-transformers with the same weights, and their gradients beside differences.

#[path = "common/seeded.rs"]
mod seeded;

use candle_core::{DType, Device, Error, IndexOp, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use candle_transformers::models::{modernbert, qwen2, qwen3};
use kron_candle::models::{Body, Config, KvCache, Layers, Tokens};
use kron_candle::{DropoutKey, Inject, KronShape, LayerDims, ScaleRule, Scaling, Split};

/// Backend of a [`VarBuilder`] with any tensor but some.
struct Seeded(&'static [&'static str]);

impl SimpleBackend for Seeded {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, _: &Device) -> Result<Tensor> {
        match self.contains_tensor(name) {
            true => seeded::tensor(name, &shape)?.to_dtype(dtype),
            false => Err(Error::CannotFindTensor { path: name.into() }),
        }
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        Err(Error::CannotFindTensor { path: name.into() })
    }

    fn contains_tensor(&self, name: &str) -> bool {
        !self.0.contains(&name)
    }
}

/// Makes a builder of seeded tensors, without those of some names.
fn builder(without: &'static [&'static str]) -> VarBuilder<'static> {
    VarBuilder::from_backend(Box::new(Seeded(without)), DType::F32, Device::Cpu)
}

/// Largest difference between the models, relative to the largest value.
///
/// Both compute in float32, in different orders.
const BOUND: f32 = 1e-5;

const QWEN2: &str = r#"{
    "model_type": "qwen2", "vocab_size": 83, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 32,
    "max_window_layers": 3, "use_sliding_window": false, "tie_word_embeddings": false, "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6, "hidden_act": "silu" }"#;

/// Heads that are wider than the hidden state's share.
const QWEN3: &str = r#"{
    "model_type": "qwen3", "vocab_size": 83, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 20, "attention_bias": false,
    "max_position_embeddings": 64, "sliding_window": null, "max_window_layers": 3, "use_sliding_window": false,
    "tie_word_embeddings": true, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu" }"#;

/// A window of 10 tokens, and blocks of which every second one sees all.
const MODERN_BERT: &str = r#"{
    "model_type": "modernbert", "vocab_size": 83, "hidden_size": 48, "intermediate_size": 72, "pad_token_id": 0,
    "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 64, "norm_eps": 1e-5,
    "layer_norm_eps": 1e-5, "global_attn_every_n_layers": 2, "global_rope_theta": 160000.0, "local_attention": 10,
    "local_rope_theta": 10000.0, "hidden_activation": "gelu" }"#;

fn texts() -> Vec<Vec<u32>> {
    [31u32, 5, 17].iter().map(|len| (0..*len).map(|i| (i * 29 + len * 7 + 1) % 83).collect()).collect()
}

fn build(config: &str, inject: &Inject) -> Result<Box<dyn Body>> {
    let (config, vb) = (Config::parse(config)?, builder(&[]));
    let vb = if config.is_decoder() { vb } else { vb.pp("model") };
    config.build(&Layers::new(inject, vb))
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().and_then(|x| x.to_vec1()).expect("float32 values")
}

/// Checks that values are the same up to rounding, and not close to 0.
fn same(ours: &Tensor, theirs: &Tensor, name: &str) {
    let (ours, theirs) = (values(ours), values(theirs));
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let largest = theirs.iter().fold(0f32, |most, v| most.max(v.abs()));
    let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest > 0.1 && off <= BOUND * largest, "{name}: {off} of {largest}");
}

/// A decoder of candle-transformers: states, or logits of the last token, of some ids from a position on.
type Theirs<'a> = &'a mut dyn FnMut(&Tensor, usize) -> Result<Tensor>;

/// Compares states of whole texts in a padded batch, and logits of tokens that come one after another.
fn same_decoder(config: &str, states: Theirs, logits: Theirs) -> Result<()> {
    let (texts, body) = (texts(), build(config, &Inject::nothing())?);
    let hidden = body.hidden(&Tokens::new(&texts), None)?;
    for (row, text) in texts.iter().enumerate() {
        let theirs = states(&Tensor::new(text.as_slice(), &Device::Cpu)?.unsqueeze(0)?, 0)?;
        same(&hidden.i(row)?.narrow(0, 0, text.len())?, &theirs, &format!("text {row} of {config}"));
    }
    let (text, mut cache, mut past) = (&texts[0], KvCache::default(), 0);
    for len in [7, 1, 1, 12, 1] {
        let ids = &text[past..past + len];
        let ours = body.logits(&body.continued(ids, &mut cache)?)?.expect("a decoder");
        // candle's mask of further tokens than one lies beside those of the cache, so each comes alone.
        let mut theirs = None;
        let steps: Vec<&[u32]> = if past == 0 { vec![ids] } else { ids.chunks(1).collect() };
        for ids in steps {
            theirs = Some(logits(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, past)?);
            past += ids.len();
        }
        same(&ours, &theirs.expect("a step"), &format!("logits after {past} tokens of {config}"));
    }
    Ok(())
}

#[test]
fn qwen2_is_that_of_candle_transformers() -> Result<()> {
    let config: qwen2::Config = serde_json::from_str(QWEN2).expect("a configuration");
    let mut model = qwen2::Model::new(&config, builder(&[]))?;
    let mut decoder = qwen2::ModelForCausalLM::new(&config, builder(&[]))?;
    let states = &mut |ids: &Tensor, past: usize| {
        model.clear_kv_cache();
        model.forward(ids, past, None)
    };
    same_decoder(QWEN2, states, &mut |ids, past| decoder.forward(ids, past))
}

#[test]
fn qwen3_is_that_of_candle_transformers() -> Result<()> {
    let config: qwen3::Config = serde_json::from_str(QWEN3).expect("a configuration");
    let mut decoder = qwen3::ModelForCausalLM::new(&config, builder(&[]))?;
    // A new model for each text: it has no public way to forget one.
    let states =
        &mut |ids: &Tensor, past: usize| qwen3::Model::new(&config, builder(&[]))?.forward(ids, past);
    same_decoder(QWEN3, states, &mut |ids, past| decoder.forward(ids, past))
}

#[test]
fn modern_bert_is_that_of_candle_transformers() -> Result<()> {
    let config: modernbert::Config = serde_json::from_str(MODERN_BERT).expect("a configuration");
    let theirs = modernbert::ModernBert::load(
        builder(&["model.layers.0.attn_norm.weight", "model.layers.0.attn_norm.gamma"]),
        &config,
    )?;
    let tokens = Tokens::new(&texts());
    let real =
        (0..tokens.rows() * tokens.len).map(|i| u32::from(i % tokens.len < tokens.lens[i / tokens.len]));
    let mask = Tensor::from_iter(real, &Device::Cpu)?.reshape((tokens.rows(), tokens.len))?;
    let theirs = theirs.forward(&tokens.tensor(&Device::Cpu)?, &mask)?;
    let ours = build(MODERN_BERT, &Inject::nothing())?.hidden(&tokens, None)?;
    for (row, &len) in tokens.lens.iter().enumerate() {
        let row_of = |x: &Tensor| x.i(row)?.narrow(0, 0, len);
        same(&row_of(&ours)?, &row_of(&theirs)?, &format!("text {row}"));
    }
    Ok(())
}

/// The other form of the same settings, as transformers 5 writes it.
#[test]
fn block_types_and_bases_are_read_in_both_forms() -> Result<()> {
    let mut config: serde_json::Value = serde_json::from_str(MODERN_BERT).expect("JSON");
    let fields = config.as_object_mut().expect("an object");
    for name in ["global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"] {
        fields.remove(name);
    }
    let (full, local) = ("full_attention", "sliding_attention");
    fields.insert("layer_types".into(), serde_json::json!([full, local, full, local]));
    let rope = |theta: f64| serde_json::json!({ "rope_type": "default", "rope_theta": theta });
    fields.insert(
        "rope_parameters".into(),
        serde_json::json!({ full: rope(160_000.0), local: rope(10_000.0) }),
    );
    let tokens = Tokens::new(&texts());
    let hidden = |config: &str| {
        Ok::<_, candle_core::Error>(values(&build(config, &Inject::nothing())?.hidden(&tokens, None)?))
    };
    assert_eq!(hidden(&config.to_string())?, hidden(MODERN_BERT)?);
    config["layer_types"] = serde_json::json!([full, local, full, full]);
    assert_ne!(hidden(&config.to_string())?, hidden(MODERN_BERT)?);
    Ok(())
}

/// The derivative along a direction of all θ, by the gradient and by a central difference.
#[test]
fn gradients_of_adapters_are_differences() -> Result<()> {
    for (config, targets) in [
        (QWEN2, ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"].as_slice()),
        (QWEN3, &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]),
        (MODERN_BERT, &["Wqkv", "attn.Wo", "Wi", "mlp.Wo"]),
    ] {
        let inject = Inject::new(targets, 3, |_, dims: LayerDims| {
            let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 3)?;
            Ok((shape, Scaling::new(3.0, 3, ScaleRule::AlphaOverR)?))
        })?;
        let body = build(config, &inject)?;
        let adapters = inject.finish()?;
        let vars = adapters.vars();
        let starts: Vec<Tensor> = vars
            .iter()
            .enumerate()
            .map(|(i, var)| {
                Tensor::new(seeded::values(&format!("θ {i}"), var.elem_count()), &Device::Cpu)? * 0.3
            })
            .collect::<Result<_>>()?;
        let move_by = |step: f64| -> Result<()> {
            for (i, (var, start)) in vars.iter().zip(&starts).enumerate() {
                let along = Tensor::new(seeded::values(&format!("v {i}"), var.elem_count()), &Device::Cpu)?;
                var.set(&(start + (along * step)?)?)?;
            }
            Ok(())
        };
        let tokens = Tokens::new(&texts());
        let weights = Tensor::new(seeded::values("weights", 48), &Device::Cpu)?;
        // A sum over the tokens that are no padding, in float64.
        let loss = |key| -> Result<Tensor> {
            let hidden = body.hidden(&tokens, key)?.broadcast_mul(&weights)?.tanh()?;
            let rows = tokens.lens.iter().enumerate();
            let sums =
                rows.map(|(row, len)| hidden.i(row)?.narrow(0, 0, *len)?.to_dtype(DType::F64)?.sum_all());
            Tensor::stack(&sums.collect::<Result<Vec<_>>>()?, 0)?.sum_all()
        };
        move_by(0.0)?;
        let gradients = loss(Some(DropoutKey { seed: 1, offset: 0 }))?.backward()?;
        let mut by_gradient = 0.0;
        for (i, var) in vars.iter().enumerate() {
            let gradient = gradients.get(var).expect("of each θ").to_vec1::<f32>()?;
            let along = seeded::values(&format!("v {i}"), var.elem_count());
            assert!(gradient.iter().any(|g| *g != 0.0), "θ {i} of {config}");
            by_gradient += gradient.iter().zip(along).map(|(g, v)| f64::from(g * v)).sum::<f64>();
        }
        let at = |step: f64| -> Result<f64> {
            move_by(step)?;
            loss(None)?.to_scalar::<f64>()
        };
        // The error falls with the square of the step until the rounding of the states takes over; Richardson's
        // extrapolation of two steps removes the square.
        let difference = |step: f64| Ok::<_, candle_core::Error>((at(step)? - at(-step)?) / (2.0 * step));
        let (coarse, fine) = (difference(4e-3)?, difference(2e-3)?);
        let by_difference = (4.0 * fine - coarse) / 3.0;
        assert!(by_gradient.abs() > 0.1, "{by_gradient}");
        assert!(
            (by_gradient / by_difference - 1.0).abs() < 5e-3,
            "{by_gradient} and {by_difference} from {coarse} and {fine} of {config}"
        );
    }
    Ok(())
}

#[test]
fn configurations_are_refused_by_sentence() {
    let with = |config: &str, name: &str, value: serde_json::Value| {
        let mut config: serde_json::Value = serde_json::from_str(config).expect("JSON");
        config[name] = value;
        Config::parse(&config.to_string()).expect_err("refused").to_string()
    };
    for (config, name, value, says) in [
        (
            QWEN2,
            "model_type",
            "gemma".into(),
            "model type \"gemma\", but bert, distilbert, modernbert, llama",
        ),
        (QWEN2, "num_key_value_heads", 4.into(), "6 query heads are not a multiple of 4"),
        (QWEN2, "rope_scaling", serde_json::json!({ "type": "yarn", "factor": 4.0 }), "rope_type is yarn"),
        (QWEN3, "head_dim", 7.into(), "heads of width 7"),
        (QWEN3, "hidden_act", "gelu".into(), "hidden_act is gelu"),
        (MODERN_BERT, "num_attention_heads", 16.into(), "num_attention_heads = 16 does not divide"),
        (MODERN_BERT, "local_attention", 0.into(), "local_attention is 0"),
        (MODERN_BERT, "hidden_activation", "relu".into(), "hidden_activation is relu"),
        (MODERN_BERT, "layer_types", serde_json::json!(["full_attention"]), "layer_types has 1 types, but"),
    ] {
        let message = with(config, name, value);
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn an_encoder_refuses_long_and_shared_texts() -> Result<()> {
    let body = build(MODERN_BERT, &Inject::nothing())?;
    let long = body.hidden(&Tokens::new(&[vec![1; 65]]), None).expect_err("65 tokens").to_string();
    assert!(long.contains("65 tokens, but the model has 64 positions"), "{long}");
    let shared = Tokens::sharing(&[vec![vec![1, 2, 3], vec![1, 2, 4]]]);
    assert!(body.hidden(&shared, None).expect_err("shared").to_string().contains("share a prefix"));
    assert!(body.continued(&[1], &mut KvCache::default()).is_err() && body.output().is_none());
    Ok(())
}
