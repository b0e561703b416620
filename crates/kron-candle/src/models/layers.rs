//! [`Layers`]: what a model is built from, matrices or blocks that stay quantised.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Inject, KronLinear, Operands, QuantisedLinear};
use candle_core::{Device, Error, Module, Result, Tensor};
use candle_nn::{Linear, VarBuilder};
use kron_adapter::gguf::Blocks;

/// Matrices that stay as a file has them, in blocks of a GGUF or in half precision, by the names of their tensors.
pub type BlocksByName = HashMap<String, Arc<Blocks>>;

/// Tensors and adapters that a model is built from.
#[derive(Clone)]
pub struct Layers<'a> {
    inject: &'a Inject<'a>,
    vb: VarBuilder<'a>,
    blocks: Option<&'a BlocksByName>,
    operands: Operands,
}

impl<'a> Layers<'a> {
    /// Takes tensors from a builder, and adapters where `inject` has them.
    pub const fn new(inject: &'a Inject<'a>, vb: VarBuilder<'a>) -> Self {
        Self { inject, vb, blocks: None, operands: Operands::Float32 }
    }

    /// Takes matrices from blocks where they have the name; products with these multiply `operands`.
    ///
    /// The builder has the other tensors, in float32 on the CPU.
    #[must_use]
    pub fn with_blocks(self, blocks: &'a BlocksByName, operands: Operands) -> Self {
        Self { blocks: Some(blocks), operands, ..self }
    }

    pub(super) const fn inject(&self) -> &'a Inject<'a> {
        self.inject
    }

    pub(super) fn builder(&self) -> VarBuilder<'a> {
        self.vb.clone()
    }

    pub(super) fn device(&self) -> &Device {
        self.vb.device()
    }

    /// Returns the maker under a longer prefix.
    pub(super) fn at(&self, name: impl ToString) -> Self {
        Self { vb: self.vb.pp(name), ..self.clone() }
    }

    /// Returns a vector.
    ///
    /// # Errors
    /// The tensor is missing or has another length.
    pub(super) fn vector(&self, len: usize, name: &str) -> Result<Tensor> {
        self.vb.get(len, name)
    }

    /// Makes a linear layer.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, or an adapter does not fit.
    pub(super) fn linear(&self, d_in: usize, d_out: usize, bias: bool, name: &str) -> Result<KronLinear> {
        let vb = self.vb.pp(name);
        let Some(blocks) = self.matrix(name, d_out, d_in)? else {
            return self.inject.linear(d_in, d_out, bias, vb);
        };
        let bias = bias.then(|| vb.get(d_out, "bias")?.to_vec1()).transpose()?;
        let base = Arc::new(QuantisedLinear::new(blocks, bias)?.with_operands(self.operands));
        self.inject.wrap_frozen(base, &vb.prefix(), vb.device())
    }

    /// Makes a table of `count` vectors.
    ///
    /// # Errors
    /// The tensor is missing or has another shape.
    pub(super) fn embedding(&self, count: usize, width: usize, name: &str) -> Result<Embedding> {
        Ok(match self.matrix(name, count, width)? {
            Some(blocks) => {
                let table = QuantisedLinear::new(blocks, None)?;
                Embedding::Blocks(Arc::new(table.with_operands(self.operands)))
            }
            None => Embedding::Table(candle_nn::embedding(count, width, self.vb.pp(name))?),
        })
    }

    /// Returns the blocks of a module's weight, if it is quantised.
    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<Option<Arc<Blocks>>> {
        let name = format!("{}.weight", self.vb.pp(name).prefix());
        match self.blocks.and_then(|blocks| blocks.get(&name)) {
            Some(blocks) if (blocks.rows(), blocks.columns()) != (rows, columns) => Err(Error::msg(format!(
                "{name} is {} × {}, but the model's configuration makes it {rows} × {columns}",
                blocks.rows(),
                blocks.columns()
            ))),
            found => Ok(found.map(Arc::clone)),
        }
    }
}

/// Vectors of all token ids.
#[derive(Clone, Debug)]
pub(super) enum Embedding {
    /// A matrix, which full fine-tuning trains.
    Table(candle_nn::Embedding),
    /// A quantised matrix, of which the rows that are asked for are dequantised.
    Blocks(Arc<QuantisedLinear>),
}

impl Embedding {
    /// Returns the vectors of some ids, … × width.
    ///
    /// # Errors
    /// An id exceeds the table.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Table(table) => table.forward(ids)?,
            Self::Blocks(table) => table.rows(ids)?,
        })
    }

    /// Returns the layer whose weight is the table: … × width to … × count.
    pub fn as_linear(&self) -> KronLinear {
        match self {
            Self::Table(table) => Linear::new(table.embeddings().clone(), None).into(),
            Self::Blocks(table) => KronLinear::frozen(Arc::<QuantisedLinear>::clone(table)),
        }
    }
}
