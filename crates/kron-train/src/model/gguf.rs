//! GGUF models of decoders.

use std::path::Path;

use candle_core::{Device, Tensor};
use kron_adapter::gguf::{BlockType, Blocks, Gguf};
use kron_candle::models::DecoderConfig;

use crate::error::{Error, Result, file};

/// A tensor of a model.
pub(super) struct GgufMatrix {
    /// Its rows and columns; a vector is one row.
    pub blocks: Blocks,
    shape: Vec<usize>,
}

impl GgufMatrix {
    /// Returns true for a matrix that takes more memory in float32.
    pub fn is_quantised(&self) -> bool {
        self.shape.len() == 2 && self.blocks.block_type() != BlockType::F32
    }

    /// Returns the values in float32.
    pub fn dequantised(&self) -> Result<Tensor> {
        Ok(dequantised(&self.blocks)?.reshape(self.shape.as_slice())?)
    }
}

/// Returns the values of a matrix in float32.
pub(super) fn dequantised(blocks: &Blocks) -> Result<Tensor> {
    let mut values = vec![0.0; blocks.rows() * blocks.columns()];
    blocks.dequantise(0..blocks.rows(), &mut values)?;
    Ok(Tensor::from_vec(values, (blocks.rows(), blocks.columns()), &Device::Cpu)?)
}

/// Reads a model; `take` gets each tensor that is wanted, under Hugging Face's name and in its row order.
///
/// # Errors
/// The file is not a GGUF of a known kind, its configuration is not supported, or `take` fails.
pub(super) fn read(
    path: &Path,
    is_wanted: impl Fn(&str) -> bool,
    mut take: impl FnMut(&str, GgufMatrix) -> Result<()>,
) -> Result<DecoderConfig> {
    let mut gguf = Gguf::open(path)?;
    let model = gguf.hugging_face()?;
    let config: DecoderConfig = serde_json::from_value(model.config).map_err(|e| file(path, e))?;
    config.check().map_err(|e| file(path, Error::from(e)))?;
    for tensor in model.tensors.iter().filter(|tensor| is_wanted(&tensor.name)) {
        let blocks = gguf.hugging_face_blocks(tensor)?;
        take(&tensor.name, GgufMatrix { blocks, shape: tensor.shape.clone() })?;
    }
    Ok(config)
}
