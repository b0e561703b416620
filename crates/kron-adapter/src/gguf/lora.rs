//! LoRA adapters as llama.cpp loads them: ΔW = alpha / r · B·A, A r × d_in and B d_out × r.
//!
//! A file has one alpha for all layers, and r is each layer's own. Rows of B for q and k have a GGUF's
//! order, that of the base; `llama.attention.key_length`, which llama.cpp does not need, tells it when
//! the file is read again.

use std::path::Path;

use half::f16;
use indexmap::IndexMap;
use kron_core::{Dtype, KronShape, LayerDims, Theta};
use ndarray::Array2;

use super::block_type::BlockType;
use super::header::Gguf;
use super::hugging_face::{Architecture, Heads, HuggingFaceTensor, LlamaTensors, is_rotated, module};
use super::value::Value;
use super::writer::{GgufHeader, padding};
use crate::algebra::{Delta, Lora, scale64};
use crate::combine::sums_as_lora;
use crate::elements::first_not_finite;
use crate::left_out::LeftOut;
use crate::limits::Limits;
use crate::limits::check_file;
use crate::peft::LoraOptions;
use crate::resolve::place_layers;
use crate::text::shown;
use crate::{
    Adapter, Error, Format, Layer, Loaded, Output, Progress, Result, ScaleRule, Scaling, Suggestion,
};

const ARCHITECTURE: &str = "general.architecture";
const KIND: &str = "general.type";
const ADAPTER_KIND: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";
const HEAD_ROWS: &str = "llama.attention.key_length";
/// Endings of A's and B's names.
const DOWN: &str = ".lora_a";
const UP: &str = ".lora_b";
/// Weight whose LoRA has another form in llama.cpp.
const EMBEDDING: &str = "token_embd.weight";

/// An encoded adapter.
#[derive(Clone, Debug)]
pub struct GgufLora {
    /// The file.
    pub output: Output,
    /// alpha of all layers.
    pub alpha: f32,
    /// Changes of the layers' scales, one sentence each.
    pub notes: Vec<String>,
    /// Trained tensors, which the file does not hold.
    pub left_out: Option<LeftOut>,
}

/// Encodes an adapter for llama.cpp, every layer as the equal LoRA of the smaller rank unless the options
/// choose a side. `progress` counts the layers.
///
/// alpha is the commonest s·r of the layers, rounded to float32. Where a layer has another s·r, their
/// ratio is multiplied into its B; a power of two loses nothing. In float32 a product A_ij·B_pq is rounded
/// once as well, and nothing else; in float16 every value is.
///
/// # Errors
/// Fails if `dtype` is neither float32 nor float16, if a layer has no place in the model, is its embedding,
/// or holds NaN or infinity, if a value or s·r is beyond the type, if the LoRAs take more than the options
/// allow, and if `progress` fails.
pub fn write_lora(
    adapter: &Adapter,
    base: &LlamaTensors,
    options: LoraOptions,
    dtype: Dtype,
    progress: Progress,
) -> Result<GgufLora> {
    let (block_type, put): (_, fn(f64, &mut Vec<u8>) -> bool) = match dtype {
        Dtype::F32 => (BlockType::F32, |v, to| {
            to.extend((v as f32).to_le_bytes());
            (v as f32).is_finite()
        }),
        Dtype::F16 => (BlockType::F16, |v, to| {
            to.extend(f16::from_f64(v).to_le_bytes());
            f16::from_f64(v).is_finite()
        }),
        Dtype::Bf16 => return Err(Error::usage("an adapter for llama.cpp is f32 or f16, not bf16")),
    };
    adapter.check_finite()?;
    let mut limits = Limits { bytes: options.budget(adapter), ..Limits::new(0) };
    let adapter =
        &*sums_as_lora(adapter, options.join, &mut limits).map_err(|e| e.with(Suggestion::MaxBytes))?;
    options.check_size(adapter)?;
    let layers = adapter.layers();
    let tensors = tensors(adapter, base)?;
    let alphas = alphas(layers, options)?;
    let alpha = commonest(&alphas);
    let mut header = GgufHeader::default();
    header.text(ARCHITECTURE, base.architecture().name())?;
    header.text(KIND, "adapter")?;
    header.text(ADAPTER_KIND, "lora")?;
    header.f32(ALPHA, alpha)?;
    if let Some(heads) = tensors.iter().find_map(|tensor| tensor.heads) {
        // A size of the model, which is far smaller.
        header.u32(HEAD_ROWS, u32::try_from(heads.width).unwrap_or(u32::MAX))?;
    }
    for (layer, tensor) in layers.iter().zip(&tensors) {
        let shape = layer.shape();
        let rank = options.join_of(shape).rank(shape);
        header.tensor(&format!("{}{DOWN}", tensor.source), block_type, &[rank, shape.d_in()])?;
        header.tensor(&format!("{}{UP}", tensor.source), block_type, &[shape.d_out(), rank])?;
    }
    let mut bytes = header.bytes()?;
    for ((layer, tensor), own) in layers.iter().zip(tensors).zip(&alphas) {
        let Lora { mut up, down, .. } = Delta::new(layer).lora(options.join_of(layer.shape()));
        if *own != alpha {
            up *= f64::from(*own) / f64::from(alpha);
        }
        if let Some(heads) = tensor.heads {
            up = permuted(&up, heads);
        }
        for factor in [down, up] {
            if !factor.iter().all(|v| put(*v, &mut bytes)) {
                let module = layer.module();
                return Err(Error::data(format!("layer {module} has a value beyond {dtype} as a LoRA")));
            }
            bytes.extend(padding(bytes.len()));
        }
        progress(1)?;
    }
    let scaled = alphas.iter().filter(|own| **own != alpha).count();
    let note = format!("layers whose scale was multiplied into B, because a file has one alpha: {scaled}");
    Ok(GgufLora {
        output: Output::File(bytes),
        alpha,
        notes: (scaled > 0).then_some(note).into_iter().collect(),
        left_out: LeftOut::of(adapter, "a GGUF LoRA holds factors alone", |_| true),
    })
}

/// Returns the tensor of every layer.
fn tensors<'a>(adapter: &Adapter, base: &'a LlamaTensors) -> Result<Vec<&'a HuggingFaceTensor>> {
    let placements = place_layers(adapter, base)?;
    let tensors = placements.iter().map(|placement| {
        let linear = base.find(&placement.tensor).filter(|tensor| tensor.source != EMBEDDING);
        linear.ok_or_else(|| {
            Error::data(format!(
                "{} is an embedding, whose LoRA has another form in a GGUF",
                placement.tensor
            ))
        })
    });
    tensors.collect()
}

/// Returns s·r of every layer, r the rank of its LoRA.
fn alphas(layers: &[Layer], options: LoraOptions) -> Result<Vec<f32>> {
    let alphas = layers.iter().map(|layer| {
        let scale = scale64(layer.scaling());
        let rank = options.join_of(layer.shape()).rank(layer.shape());
        let alpha = (scale * rank as f64) as f32;
        match alpha.is_finite() && (alpha != 0.0) == (scale != 0.0) {
            true => Ok(alpha),
            false => Err(Error::data(format!(
                "layer {} has alpha = s·r = {scale:e}·{rank}, which is beyond float32",
                layer.module()
            ))),
        }
    });
    alphas.collect()
}

/// Returns the commonest value, of equally common ones the first. llama.cpp takes 0 for a missing alpha, so
/// that 0 is never returned.
fn commonest(alphas: &[f32]) -> f32 {
    let mut counts: IndexMap<u32, usize> = IndexMap::new();
    alphas
        .iter()
        .filter(|alpha| **alpha != 0.0)
        .for_each(|alpha| *counts.entry(alpha.to_bits()).or_default() += 1);
    let most = counts.values().max();
    counts.iter().find(|(_, count)| Some(*count) == most).map_or(1.0, |(bits, _)| f32::from_bits(*bits))
}

/// Returns the matrix with its rows in a GGUF's order.
fn permuted(up: &Array2<f64>, heads: Heads) -> Array2<f64> {
    let mut all = up.clone();
    for (row, values) in up.outer_iter().enumerate() {
        all.row_mut(heads.gguf_row(row)).assign(&values);
    }
    all
}

/// Reads an adapter, with Hugging Face's names and row order.
///
/// # Errors
/// Fails if the file is a model or another kind of adapter, if a tensor has no name of a LLaMA's weight,
/// lacks its other half or does not fit it, if a value is not finite, and if the order of q's or k's rows is
/// not known.
pub fn read_lora(path: &Path) -> Result<Loaded> {
    let mut gguf = Gguf::open(path)?;
    check_file(gguf.path(), gguf.len())?;
    let (path, bytes) = (gguf.path().to_string(), gguf.len());
    let adapter = read(&mut gguf).map_err(|e| e.about(&path))?;
    Ok(Loaded::new(path, Limits::new(bytes), bytes, Format::GgufLora, adapter))
}

fn read(gguf: &mut Gguf) -> Result<Adapter> {
    for (key, known) in [(KIND, "adapter"), (ADAPTER_KIND, "lora")] {
        let text = gguf.metadata().get(key).and_then(Value::as_str);
        if text != Some(known) {
            let got = text.map_or("missing".into(), shown);
            return Err(Error::data(format!("is not a known adapter: {key} is {got}, not {known:?}")));
        }
    }
    let kind = gguf.metadata().get(ARCHITECTURE).and_then(Value::as_str);
    let Some(architecture) = kind.and_then(Architecture::of) else {
        return Err(Error::data(format!(
            "is not a known adapter: {ARCHITECTURE} is {}, but {} are known",
            kind.map_or("missing".into(), shown),
            Architecture::known()
        )));
    };
    let alpha = match gguf.metadata().get(ALPHA) {
        None => None,
        Some(alpha) => Some(
            alpha.as_f64().ok_or_else(|| Error::data(format!("{ALPHA} is not a floating-point number")))?,
        ),
    };
    let width = match gguf.metadata().get(HEAD_ROWS) {
        None => None,
        Some(rows) => Some(
            rows.as_usize()
                .filter(|rows| *rows > 0 && rows.is_multiple_of(2))
                .ok_or_else(|| Error::data(format!("{HEAD_ROWS} is not an even number above 0")))?,
        ),
    };
    let mut weights: IndexMap<String, [bool; 2]> = IndexMap::new();
    for name in gguf.tensors().keys() {
        let half = [DOWN, UP].iter().enumerate().find_map(|(i, end)| Some((i, name.strip_suffix(end)?)));
        let Some((i, weight)) = half else {
            return Err(Error::data(format!("{} is no factor of a LoRA", shown(name))));
        };
        weights.entry(weight.into()).or_default()[i] = true;
    }
    let layers = weights.iter().map(|(weight, halves)| {
        if *halves != [true, true] {
            return Err(Error::data(format!("{} lacks {DOWN} or {UP}", shown(weight))));
        }
        layer(gguf, architecture, weight, alpha, width).map_err(|e| e.about(shown(weight)))
    });
    let layers = layers.collect::<Result<_>>()?;
    Adapter::new(layers)
}

/// Reads the layer of a weight.
fn layer(
    gguf: &mut Gguf,
    architecture: Architecture,
    weight: &str,
    alpha: Option<f64>,
    width: Option<usize>,
) -> Result<Layer> {
    let module = weight.strip_suffix(".weight").filter(|_| weight != EMBEDDING).and_then(module);
    let Some((module, _)) = module else {
        return Err(Error::data("is no linear layer of a LLaMA"));
    };
    let [down, up] = [DOWN, UP].map(|end| format!("{weight}{end}"));
    let shape = |name: &str| gguf.tensors().get(name).map(|tensor| tensor.shape.clone()).unwrap_or_default();
    let (down_shape, up_shape) = (shape(&down), shape(&up));
    let ([rank, d_in], [d_out, other]) = (&down_shape[..], &up_shape[..]) else {
        return Err(Error::data("has factors that are no matrices"));
    };
    if rank != other {
        return Err(Error::data(format!("has factors of ranks {rank} and {other}")));
    }
    let mut up = gguf.blocks(&up)?;
    if architecture.permutes_rows() && is_rotated(&module) {
        let Some(width) = width.filter(|width| d_out.is_multiple_of(*width)) else {
            return Err(Error::data(format!(
                "has rows in a GGUF's order, which {HEAD_ROWS} has to tell, a divisor of {d_out}"
            )));
        };
        up = up.with_rows(|row| Heads { width }.gguf_row(row))?;
    }
    let factors = [gguf.blocks(&down)?, up].map(|blocks| {
        let mut values = vec![0.0; blocks.rows() * blocks.columns()];
        blocks.dequantise(0..blocks.rows(), &mut values).map(|()| values)
    });
    let [down, up] = factors;
    let (down, up) = (down?, up?);
    if first_not_finite(&down).or(first_not_finite(&up)).is_some() {
        return Err(Error::data("has a value that is not finite"));
    }
    // llama.cpp takes 0 for a missing alpha, and a missing one for s = 1.
    let scaling = match alpha.filter(|alpha| *alpha != 0.0) {
        None => Scaling::plain(1.0)?,
        Some(alpha) => Scaling::new(alpha as f32, *rank, ScaleRule::AlphaOverR)?,
    };
    let shape = KronShape::lora(LayerDims { d_out: *d_out, d_in: *d_in }, *rank)?;
    Layer::new(module, scaling, Theta::from_factors(shape, &[], &up, &down)?)
}
