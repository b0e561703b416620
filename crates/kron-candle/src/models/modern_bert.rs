//! ModernBERT encoders (arXiv 2412.13663), with the tensor names of Hugging Face's checkpoints.

use candle_core::{Error, Result, Tensor};

use super::body::{Attention, Body, detach_in_evaluation};
use super::layers::{Embedding, Layers};
use super::modern_bert_config::{LayerType, ModernBertConfig};
use super::norm::Norm;
use super::ops::{AttentionMask, Heads, add, attention, geglu};
use super::rope::{Rope, Rotation};
use super::tokens::Tokens;
use crate::{DropoutKey, KronLinear};

/// ModernBERT encoder.
#[derive(Debug)]
pub struct ModernBert {
    words: Embedding,
    norm: Norm,
    blocks: Vec<Block>,
    final_norm: Norm,
    /// Of blocks that see all tokens, and of blocks that see near ones.
    ropes: [Rope; 2],
    /// Largest distance of a token that a block of the second kind sees.
    reach: usize,
    positions: usize,
    device: candle_core::Device,
}

#[derive(Debug)]
struct Block {
    /// `None` in the first block, whose input is normalised already.
    attn_norm: Option<Norm>,
    qkv: KronLinear,
    out: KronLinear,
    mlp_norm: Norm,
    gated: KronLinear,
    down: KronLinear,
    heads: Heads,
    layer_type: LayerType,
}

/// Mask and rotations of the blocks of one type.
struct Sight {
    mask: AttentionMask,
    rotation: Rotation,
}

impl ModernBert {
    /// Builds the encoder from its layers, whose names begin with `embeddings`, `layers` and `final_norm`: in the
    /// checkpoint of a head, they are under `model`.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or an adapter does not fit.
    pub fn new(config: &ModernBertConfig, layers: &Layers) -> Result<Self> {
        config.check()?;
        let at = layers.at("embeddings");
        let types = config.layer_types()?.into_iter().enumerate();
        let blocks =
            types.map(|(i, kind)| Block::new(config, i == 0, kind, &layers.at(format!("layers.{i}"))));
        let rope = |kind| Ok::<_, Error>(Rope::new(config.frequencies(kind)?));
        Ok(Self {
            words: at.embedding(config.vocab_size, config.hidden_size, "tok_embeddings")?,
            norm: norm(config, &at.at("norm"))?,
            blocks: blocks.collect::<Result<_>>()?,
            final_norm: norm(config, &layers.at("final_norm"))?,
            ropes: [rope(LayerType::FullAttention)?, rope(LayerType::SlidingAttention)?],
            reach: config.local_attention / 2,
            positions: config.max_position_embeddings,
            device: layers.device().clone(),
        })
    }

    fn sights(&self, tokens: &Tokens, x: &Tensor) -> Result<[Sight; 2]> {
        let [all, near] = &self.ropes;
        Ok([
            Sight {
                mask: AttentionMask::new(tokens.segments(), 0, Attention::Bidirectional),
                rotation: all.rotation(tokens.len, x)?,
            },
            Sight {
                mask: AttentionMask::local(&tokens.lens, self.reach),
                rotation: near.rotation(tokens.len, x)?,
            },
        ])
    }
}

impl Body for ModernBert {
    fn hidden(&self, tokens: &Tokens, dropout: Option<DropoutKey>) -> Result<Tensor> {
        tokens.check_alone(self.positions)?;
        let mut x = self.norm.forward(&self.words.forward(&tokens.tensor(&self.device)?)?)?;
        let [all, near] = self.sights(tokens, &x)?;
        for block in &self.blocks {
            let sight = match block.layer_type {
                LayerType::FullAttention => &all,
                LayerType::SlidingAttention => &near,
            };
            x = detach_in_evaluation(block.forward(&x, sight, dropout)?, dropout);
        }
        self.final_norm.forward(&x)
    }

    fn output(&self) -> Option<&KronLinear> {
        None
    }

    fn attention(&self) -> Attention {
        Attention::Bidirectional
    }
}

fn norm(config: &ModernBertConfig, layers: &Layers) -> Result<Norm> {
    let (width, eps) = (config.hidden_size, config.norm_eps as f32);
    let weight = layers.vector(width, "weight")?;
    let bias = match config.norm_bias {
        true => layers.vector(width, "bias")?,
        false => weight.zeros_like()?.detach(),
    };
    Ok(Norm { weight, bias, eps })
}

impl Block {
    fn new(config: &ModernBertConfig, first: bool, layer_type: LayerType, layers: &Layers) -> Result<Self> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let (attn, mlp) = (layers.at("attn"), layers.at("mlp"));
        Ok(Self {
            attn_norm: match first {
                true => None,
                false => Some(norm(config, &layers.at("attn_norm"))?),
            },
            qkv: attn.linear(hidden, 3 * hidden, config.attention_bias, "Wqkv")?,
            out: attn.linear(hidden, hidden, config.attention_bias, "Wo")?,
            mlp_norm: norm(config, &layers.at("mlp_norm"))?,
            gated: mlp.linear(hidden, 2 * wide, config.mlp_bias, "Wi")?,
            down: mlp.linear(wide, hidden, config.mlp_bias, "Wo")?,
            heads: config.heads(),
            layer_type,
        })
    }

    fn forward(&self, x: &Tensor, sight: &Sight, key: Option<DropoutKey>) -> Result<Tensor> {
        let hidden = x.dim(2)?;
        let qkv = match &self.attn_norm {
            Some(norm) => self.qkv.forward_with(&norm.forward(x)?, key)?,
            None => self.qkv.forward_with(x, key)?,
        };
        let part = |i: usize| qkv.narrow(2, i * hidden, hidden)?.contiguous();
        let mixed =
            attention([&part(0)?, &part(1)?, &part(2)?], self.heads, Some(&sight.rotation), &sight.mask)?;
        let x = add(&self.out.forward_with(&mixed, key)?, x)?;
        let wide = geglu(&self.gated.forward_with(&self.mlp_norm.forward(&x)?, key)?)?;
        add(&self.down.forward_with(&wide, key)?, &x)
    }
}
