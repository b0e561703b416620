//! Tensors that an adapter brings along, in the place of the model's.

use candle_core::{DType, Device, Tensor};
use kron_adapter::resolve::BaseTensors;
use kron_adapter::{Adapter, TrainedTensor};
use kron_candle::Operands;
use kron_candle::models::Config;
use safetensors::Dtype;

use super::gguf::dequantised;
use super::load::Weights;
use super::reader::round_matrices;
use crate::error::{Result, invalid};

/// Names of a decoder's embedding, and of the output head that may be one with it.
const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

impl Weights {
    /// Lists the names and shapes of all tensors under the name of a model, to match an adapter's names with; an output
    /// head that is the embedding is among them.
    pub fn as_base(&self, model: impl Into<String>) -> BaseTensors {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec()));
        let blocks =
            self.blocks.iter().map(|(name, blocks)| (name.clone(), vec![blocks.rows(), blocks.columns()]));
        let head =
            self.is_tied().then(|| (weight(HEAD), vec![self.config.vocabulary(), self.config.hidden()]));
        let all = tensors.chain(blocks).chain(head);
        BaseTensors::new(model, all.map(|(name, shape)| (name, Dtype::F32, shape)))
    }

    /// Returns true if a tensor of this name would be the model's, were its leading components more or fewer or its
    /// numbers others, rather than that of a module which the model lacks.
    pub fn has_a(&self, name: &str) -> bool {
        let ends = |long: &str, short: &str| {
            long.strip_suffix(short).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let first = |name: &str| name.split('.').next().map(str::to_owned);
        let block = plain_numbers(name);
        let is_near = |own: &str| {
            let own_block = plain_numbers(own);
            first(own) == first(name) || ends(&own_block, &block) || ends(&block, &own_block)
        };
        let is_head = matches!(self.config, Config::Decoder(_)) && ends(name, &weight(HEAD));
        is_head || self.tensors.keys().chain(self.blocks.keys()).any(|own| is_near(own))
    }

    /// Returns the weights with some trained tensors, of the names and shapes in [`Self::as_base`], in the place of the
    /// model's, for an adapter with these layers.
    ///
    /// Where head and embedding are one, trained rows are those of both, and anything else that changes one of them
    /// makes them two, as in PEFT.
    ///
    /// # Errors
    /// The model has no such tensor or row, or candle fails.
    pub fn replaced(&self, adapter: &Adapter, trained: &[TrainedTensor]) -> Result<Self> {
        let mut weights = self.clone();
        let [head, embedding] = [HEAD, EMBEDDING].map(weight);
        let unties = |tensor: &TrainedTensor| {
            tensor.rows().is_none() && [&head, &embedding].iter().any(|own| *own == tensor.name())
        };
        if adapter.layers().iter().any(|layer| layer.module() == HEAD) || trained.iter().any(unties) {
            weights.untie(&head, &embedding);
        }
        for tensor in trained {
            let name = if weights.is_tied() && tensor.name() == head { &embedding } else { tensor.name() };
            weights.replace(name, tensor)?;
        }
        if self.device.is_cpu() && self.operands == Operands::Bf16 {
            round_matrices(&mut weights.tensors, &mut weights.blocks)?;
        }
        Ok(weights)
    }

    const fn is_tied(&self) -> bool {
        matches!(&self.config, Config::Decoder(config) if config.tie_word_embeddings)
    }

    fn untie(&mut self, head: &str, embedding: &str) {
        match &mut self.config {
            Config::Decoder(config) if config.tie_word_embeddings => config.tie_word_embeddings = false,
            _ => return,
        }
        if let Some(tensor) = self.tensors.get(embedding).cloned() {
            self.tensors.insert(head.into(), tensor);
        } else if let Some(blocks) = self.blocks.get(embedding).cloned() {
            self.blocks.insert(head.into(), blocks);
        }
    }

    fn replace(&mut self, name: &str, trained: &TrainedTensor) -> Result<()> {
        let missing = || invalid(format!("the model has no tensor {name}"));
        let values = match (trained.rows(), self.blocks.remove(name), self.tensors.remove(name)) {
            (_, None, None) => return Err(missing()),
            (None, ..) => Tensor::from_slice(trained.values(), trained.shape(), &Device::Cpu)?,
            (Some(rows), Some(blocks), _) => with_rows(&dequantised(&blocks)?, rows, trained.values())?,
            (Some(rows), None, Some(matrix)) => with_rows(&matrix, rows, trained.values())?,
        };
        self.tensors.insert(name.into(), values.to_dtype(self.dtype)?.to_device(&self.device)?);
        Ok(())
    }
}

/// Returns a name with 0 for every number.
fn plain_numbers(name: &str) -> String {
    let part =
        |part: &str| if part.bytes().all(|b| b.is_ascii_digit()) { "0".into() } else { part.to_owned() };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

fn weight(module: &str) -> String {
    format!("{module}.weight")
}

/// Returns a matrix with other values in some of its rows, in float32 on the CPU.
fn with_rows(matrix: &Tensor, rows: &[usize], values: &[f32]) -> Result<Tensor> {
    let (height, width) = matrix.dims2()?;
    let mut all = matrix.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    for (&row, values) in rows.iter().zip(values.chunks_exact(width)) {
        let place = all.chunks_exact_mut(width).nth(row);
        place.ok_or_else(|| invalid(format!("row {row} of {height} was trained")))?.copy_from_slice(values);
    }
    Ok(Tensor::from_vec(all, (height, width), &Device::Cpu)?)
}
