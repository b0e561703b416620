//! Qwen2 and Qwen3 over a GGUF's blocks, beside candle-transformers' models of the same file and beside matrices.

#[path = "common/seeded.rs"]
mod seeded;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::gguf_file::{Content, Value, write};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{quantized_qwen2, quantized_qwen3};
use kron_adapter::gguf::{BlockType, Gguf};
use kron_candle::models::{BlocksByName, Body, Config, KvCache, Layers, Tokens, next_token_loss};
use kron_candle::{DropoutKey, Inject, KronShape, LayerDims, Operands, ScaleRule, Scaling, Split};

const VOCABULARY: usize = 96;
const HIDDEN: usize = 64;
const WIDE: usize = 96;
const HEADS: usize = 4;
const KEYS: usize = 2;
const BLOCKS: usize = 2;

fn head(architecture: &str) -> usize {
    if architecture == "qwen3" { 32 } else { HIDDEN / HEADS }
}

/// Names in a GGUF, and shapes.
fn tensors(architecture: &str) -> Vec<(String, Vec<usize>)> {
    let (queries, keys) = (HEADS * head(architecture), KEYS * head(architecture));
    let mut all = vec![
        ("token_embd.weight".into(), vec![VOCABULARY, HIDDEN]),
        ("output_norm.weight".into(), vec![HIDDEN]),
    ];
    for i in 0..BLOCKS {
        let mut add = |name: &str, shape: &[usize]| all.push((format!("blk.{i}.{name}"), shape.to_vec()));
        for (name, d_out, d_in) in [
            ("attn_q", queries, HIDDEN),
            ("attn_k", keys, HIDDEN),
            ("attn_v", keys, HIDDEN),
            ("attn_output", HIDDEN, queries),
            ("ffn_gate", WIDE, HIDDEN),
            ("ffn_up", WIDE, HIDDEN),
            ("ffn_down", HIDDEN, WIDE),
        ] {
            add(&format!("{name}.weight"), &[d_out, d_in]);
        }
        add("attn_norm.weight", &[HIDDEN]);
        add("ffn_norm.weight", &[HIDDEN]);
        match architecture {
            "qwen3" => {
                ["attn_q_norm.weight", "attn_k_norm.weight"].map(|name| add(name, &[head(architecture)]))
            }
            _ => ["attn_q.bias", "attn_k.bias"].map(|name| {
                add(name, &[if name.contains('q') { queries } else { keys }]);
            }),
        };
        if architecture == "qwen2" {
            add("attn_v.bias", &[keys]);
        }
    }
    all
}

/// Writes a model by candle's writer, with matrices of a type.
fn gguf(path: &Path, architecture: &str, matrices: GgmlDType) -> Result<()> {
    let key = |name: &str| format!("{architecture}.{name}");
    let texts =
        |texts: &[String]| Value::Array(texts.iter().map(|text| Value::String(text.clone())).collect());
    let tokens: Vec<String> = (0..VOCABULARY).map(|i| format!("t{i}")).collect();
    let mut metadata = vec![
        ("general.architecture".into(), Value::String(architecture.into())),
        ("general.dtype".into(), Value::U32(0)),
        (key("rope.freq_base"), Value::F32(1e6)),
        (key("attention.layer_norm_rms_epsilon"), Value::F32(1e-6)),
        ("tokenizer.ggml.model".into(), Value::String("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::String("qwen2".into())),
        ("tokenizer.ggml.tokens".into(), texts(&tokens)),
        ("tokenizer.ggml.token_type".into(), Value::Array(vec![Value::I32(1); VOCABULARY])),
        ("tokenizer.ggml.merges".into(), texts(&["t 1".into()])),
    ];
    for (name, size) in [
        ("block_count", BLOCKS),
        ("context_length", 64),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", WIDE),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KEYS),
    ] {
        metadata.push((key(name), Value::U32(size as u32)));
    }
    if architecture == "qwen3" {
        metadata.push((key("attention.key_length"), Value::U32(head(architecture) as u32)));
    }
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let matrix = seeded::tensor(&name, &Shape::from(shape.as_slice()))?;
        let kind = if shape.len() == 2 { matrices } else { GgmlDType::F32 };
        Ok((name, QTensor::quantize(&matrix, kind)?))
    };
    let tensors = tensors(architecture).into_iter().map(tensor).collect::<Result<Vec<_>>>()?;
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    write(&mut File::create(path)?, &metadata, &tensors)
}

/// The model of a file: its configuration, its matrices in blocks, and its vectors.
struct Model {
    config: Config,
    blocks: BlocksByName,
    vectors: HashMap<String, Tensor>,
}

impl Model {
    fn read(path: &Path) -> Self {
        let mut gguf = Gguf::open(path).expect("a GGUF");
        let model = gguf.hugging_face().expect("a known architecture");
        let (mut blocks, mut vectors) = (BlocksByName::new(), HashMap::new());
        for tensor in &model.tensors {
            let of = gguf.hugging_face_blocks(tensor).expect("blocks");
            if tensor.shape.len() == 2 {
                blocks.insert(tensor.name.clone(), Arc::new(of));
                continue;
            }
            let mut values = vec![0.0; tensor.shape[0]];
            of.dequantise(0..1, &mut values).expect("values");
            vectors.insert(tensor.name.clone(), Tensor::new(values, &Device::Cpu).expect("a vector"));
        }
        Self { config: Config::parse(&model.config.to_string()).expect("a configuration"), blocks, vectors }
    }

    /// Builds the model over its blocks, or over the matrices that they are.
    fn build(&self, inject: &Inject, dense: bool) -> Result<Box<dyn Body>> {
        let mut tensors = self.vectors.clone();
        if dense {
            for (name, blocks) in &self.blocks {
                let mut values = vec![0.0; blocks.rows() * blocks.columns()];
                blocks.dequantise(0..blocks.rows(), &mut values).expect("values");
                let matrix = Tensor::from_vec(values, (blocks.rows(), blocks.columns()), &Device::Cpu)?;
                tensors.insert(name.clone(), matrix);
            }
        }
        let layers = Layers::new(inject, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu));
        match dense {
            true => self.config.build(&layers),
            false => self.config.build(&layers.with_blocks(&self.blocks, Operands::Float32)),
        }
    }
}

fn same(ours: &Tensor, theirs: &Tensor, name: &str) {
    let values = |x: &Tensor| x.flatten_all().and_then(|x| x.to_vec1::<f32>()).expect("float32 values");
    let (ours, theirs) = (values(ours), values(theirs));
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let largest = theirs.iter().fold(0f32, |most, v| most.max(v.abs()));
    let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest > 1e-4 && off <= 1e-5 * largest, "{name}: {off} of {largest}");
}

const TEXT: [u32; 11] = [5, 91, 33, 2, 77, 14, 60, 8, 41, 95, 26];

/// The rows of q and k are where candle-transformers expects them.
#[test]
fn a_file_is_the_model_of_candle_transformers() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    for architecture in ["qwen2", "qwen3"] {
        let path = folder.path().join(format!("{architecture}.gguf"));
        gguf(&path, architecture, GgmlDType::F32)?;
        let ids = Tensor::new(&TEXT, &Device::Cpu)?.unsqueeze(0)?;
        let mut file = File::open(&path)?;
        let content = Content::read(&mut file)?;
        let theirs = match architecture {
            "qwen2" => quantized_qwen2::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?
                .forward(&ids, 0)?,
            _ => quantized_qwen3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?
                .forward(&ids, 0)?,
        };
        let model = Model::read(&path);
        assert!(model.blocks.values().all(|blocks| blocks.block_type() == BlockType::F32));
        let body = model.build(&Inject::nothing(), false)?;
        let hidden = body.hidden(&Tokens::new(&[TEXT]), None)?.narrow(1, TEXT.len() - 1, 1)?;
        same(&body.logits(&hidden)?.expect("a decoder"), &theirs, architecture);
        let (mut cache, mut last) = (KvCache::default(), None);
        for part in TEXT.chunks(4) {
            last = Some(body.continued(part, &mut cache)?);
        }
        same(&last.expect("parts"), &hidden, architecture);
    }
    Ok(())
}

/// Quantised matrices give the states and the gradients of the matrices that they are.
#[test]
fn blocks_train_as_their_matrices() -> Result<()> {
    let folder = tempfile::tempdir().expect("a folder");
    for architecture in ["qwen2", "qwen3"] {
        let path = folder.path().join(format!("{architecture}.gguf"));
        gguf(&path, architecture, GgmlDType::Q8_0)?;
        let model = Model::read(&path);
        assert!(model.blocks.values().all(|blocks| blocks.block_type() == BlockType::Q8_0));
        let run = |dense: bool| -> Result<Vec<Tensor>> {
            let inject = Inject::new(&["*proj"], 3, |_, dims: LayerDims| {
                let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 3)?;
                Ok((shape, Scaling::new(3.0, 3, ScaleRule::AlphaOverR)?))
            })?;
            let body = model.build(&inject, dense)?;
            let vars = inject.finish()?.vars();
            assert_eq!(vars.len(), 7 * BLOCKS);
            for (i, var) in vars.iter().enumerate() {
                let values = seeded::values(&format!("θ {i}"), var.elem_count());
                var.set(&(Tensor::new(values, &Device::Cpu)? * 0.3)?)?;
            }
            let tokens = Tokens::new(&[&TEXT[..], &TEXT[3..7]]);
            let hidden = body.hidden(&tokens, Some(DropoutKey { seed: 1, offset: 0 }))?;
            let loss = next_token_loss(&*body, &hidden, &tokens, &[1, 2])?.sum_all()?;
            let gradients = loss.backward()?;
            let of_vars = vars.iter().map(|var| gradients.get(var).expect("of each θ").clone());
            Ok([hidden.narrow(0, 0, 1)?, loss].into_iter().chain(of_vars).collect())
        };
        for (i, (blocks, matrices)) in run(false)?.iter().zip(&run(true)?).enumerate() {
            same(blocks, matrices, &format!("result {i} of {architecture}"));
        }
    }
    Ok(())
}
