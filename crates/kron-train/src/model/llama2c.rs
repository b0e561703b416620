//! Model file of llama2.c, read into the tensor names and layouts of Hugging Face's LLaMA.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use kron_adapter::io;
use kron_candle::models::{DecoderConfig, DecoderKind};

use crate::error::{Error, Result, file};
use crate::files;

/// Length of the header: dim, hidden, layers, heads, kv heads, vocabulary (negative: untied output matrix), positions.
const HEADER: usize = 7;

/// Reads llama2.c's legacy format.
///
/// # Errors
/// The file cannot be read, its sizes are invalid, or its length does not match them.
pub(super) fn read(path: &Path) -> Result<(DecoderConfig, HashMap<String, Tensor>)> {
    let bytes = io::read(path, files::MAX_WEIGHTS)?;
    let word = |i: usize| bytes.get(4 * i..4 * i + 4).map(|b| [b[0], b[1], b[2], b[3]]);
    let header: Option<Vec<i32>> = (0..HEADER).map(|i| word(i).map(i32::from_le_bytes)).collect();
    let header = header.ok_or_else(|| file(path, "is shorter than the header of a llama2.c model"))?;
    let size = |i: usize| match usize::try_from(header[i].unsigned_abs()) {
        Ok(n) if (1..1 << 20).contains(&n) && (header[i] > 0 || i == 5) => Ok(n),
        _ => Err(file(path, format!("has {} as number {i} of its header, which is not a size", header[i]))),
    };
    let config = DecoderConfig {
        model_type: DecoderKind::Llama,
        hidden_size: size(0)?,
        intermediate_size: size(1)?,
        num_hidden_layers: size(2)?,
        num_attention_heads: size(3)?,
        num_key_value_heads: Some(size(4)?),
        vocab_size: size(5)?,
        max_position_embeddings: size(6)?,
        rms_norm_eps: 1e-5,
        rope_theta: None,
        rope_scaling: None,
        rope_parameters: None,
        head_dim: None,
        attention_bias: false,
        mlp_bias: false,
        sliding_window: None,
        use_sliding_window: None,
        hidden_act: "silu".into(),
        tie_word_embeddings: header[5] > 0,
    };
    config.check().map_err(|e| file(path, Error::from(e)))?;
    let mut reader = Reader { path, bytes: &bytes, at: 4 * HEADER, tensors: HashMap::new() };
    reader.all(&config)?;
    Ok((config, reader.tensors))
}

struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    tensors: HashMap<String, Tensor>,
}

impl Reader<'_> {
    /// Reads all tensors in the order of the file.
    fn all(&mut self, c: &DecoderConfig) -> Result<()> {
        let (dim, wide, kv) = (c.hidden_size, c.intermediate_size, c.kv_heads() * c.head());
        let embedding = self.take((c.vocab_size, dim))?;
        self.tensors.insert("model.embed_tokens.weight".into(), embedding);
        self.each(c, "input_layernorm", |r| r.take(dim))?;
        self.each(c, "self_attn.q_proj", |r| halves(r.take((dim, dim))?, c.head()))?;
        self.each(c, "self_attn.k_proj", |r| halves(r.take((kv, dim))?, c.head()))?;
        self.each(c, "self_attn.v_proj", |r| r.take((kv, dim)))?;
        self.each(c, "self_attn.o_proj", |r| r.take((dim, dim)))?;
        self.each(c, "post_attention_layernorm", |r| r.take(dim))?;
        self.each(c, "mlp.gate_proj", |r| r.take((wide, dim)))?;
        self.each(c, "mlp.down_proj", |r| r.take((dim, wide)))?;
        self.each(c, "mlp.up_proj", |r| r.take((wide, dim)))?;
        let norm = self.take(dim)?;
        self.tensors.insert("model.norm.weight".into(), norm);
        // The rotary tables are skipped; the decoder computes its own.
        self.take((2, c.max_position_embeddings, c.head() / 2))?;
        if !c.tie_word_embeddings {
            let head = self.take((c.vocab_size, dim))?;
            self.tensors.insert("lm_head.weight".into(), head);
        }
        match self.bytes.len() - self.at {
            0 => Ok(()),
            more => Err(file(self.path, format!("is {more} bytes longer than its header requires"))),
        }
    }

    fn each(
        &mut self,
        config: &DecoderConfig,
        name: &str,
        read: impl Fn(&mut Self) -> Result<Tensor>,
    ) -> Result<()> {
        for i in 0..config.num_hidden_layers {
            let tensor = read(self)?;
            self.tensors.insert(format!("model.layers.{i}.{name}.weight"), tensor);
        }
        Ok(())
    }

    fn take(&mut self, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let end = self.at + 4 * shape.elem_count();
        let Some(bytes) = self.bytes.get(self.at..end) else {
            return Err(file(
                self.path,
                format!("ends at byte {}, but its header needs more", self.bytes.len()),
            ));
        };
        self.at = end;
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)?)
    }
}

/// Reorders the rows of each head: llama2.c rotates neighbouring pairs, the decoder pairs half a head apart.
fn halves(weight: Tensor, head: usize) -> Result<Tensor> {
    let (rows, cols) = weight.dims2()?;
    let pairs = weight.reshape((rows / head, head / 2, 2, cols))?.transpose(1, 2)?;
    Ok(pairs.contiguous()?.reshape((rows, cols))?)
}
