//! GGUF models of the LLaMA family, dequantised on reading.

use std::path::Path;

use candle_core::{Device, Tensor};
use kron_adapter::gguf::Gguf;

use super::llama::LlamaConfig;
use crate::error::{Result, file};

/// Reads a model; `take` gets each tensor in float32, under Hugging Face's name and in its row order.
///
/// # Errors
/// The file is not a GGUF of a known kind, its configuration is not supported, or `take` fails.
pub(super) fn read(path: &Path, mut take: impl FnMut(&str, Tensor) -> Result<()>) -> Result<LlamaConfig> {
    let mut gguf = Gguf::open(path)?;
    let model = gguf.hugging_face()?;
    let config: LlamaConfig = serde_json::from_value(model.config).map_err(|e| file(path, e))?;
    config.check().map_err(|e| file(path, e))?;
    for tensor in &model.tensors {
        let blocks = gguf.hugging_face_blocks(tensor)?;
        let mut values = vec![0.0; blocks.rows() * blocks.columns()];
        blocks.dequantise(0..blocks.rows(), &mut values)?;
        take(&tensor.name, Tensor::from_vec(values, tensor.shape.as_slice(), &Device::Cpu)?)?;
    }
    Ok(config)
}
