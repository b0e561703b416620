//! One method on one model, and its counts.

use kron_core::{KronShape, Outer};

use super::method::Method;
use super::model::{Linear, Model};
use super::split::{Fitted, Note};
use crate::Result;

/// One method on one model: a shape for every layer, and the counts.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterPlan {
    /// The planned method.
    pub method: Method,
    /// One row per kind of layer, in the model's order.
    pub rows: Vec<Row>,
    /// Parameters trained without an adapter.
    pub also_trained: u64,
}

/// A layer with the shape of its adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The layer and its multiplicity.
    pub linear: Linear,
    /// The adapter's shape on it.
    pub shape: KronShape,
    /// Deviations from the method on this layer.
    pub notes: Vec<Note>,
}

impl AdapterPlan {
    /// Gives every layer its shape.
    ///
    /// # Errors
    /// Fails as [`Method::fit`] does.
    pub fn new(model: &Model, method: Method) -> Result<Self> {
        let rows = model.linears().iter().map(|linear| {
            let Fitted { shape, notes } = method.fit(linear.dims())?;
            Ok(Row { linear: linear.clone(), shape, notes })
        });
        Ok(Self { method, rows: rows.collect::<Result<_>>()?, also_trained: model.also_trained() })
    }

    /// Returns the parameters of all adapters.
    pub fn adapter_params(&self) -> u128 {
        self.sum(|shape| shape.params() as u128)
    }
    /// Returns the parameters that the optimizer sees: the adapters' and those trained without one.
    pub fn trained_params(&self) -> u128 {
        self.adapter_params() + u128::from(self.also_trained)
    }
    /// Returns the bytes of all adapters, in float32.
    pub fn adapter_bytes(&self) -> u128 {
        4 * self.adapter_params()
    }
    /// Returns the bytes of Adam's two moments, in float32, for everything trained.
    pub fn optimizer_bytes(&self) -> u128 {
        8 * self.trained_params()
    }
    /// Returns the multiply-adds of all adapters, forward, per token.
    pub fn multiply_adds(&self) -> u128 {
        self.sum(multiply_adds)
    }
    /// Returns the bytes that all adapters keep for backward, per token: T in float32.
    pub fn saved_bytes(&self) -> u128 {
        self.sum(|shape| 4 * saved_elements(shape))
    }
    /// Returns the sum over the layers of the upper bound of rank(ΔW).
    pub fn rank_sum(&self) -> u128 {
        self.sum(|shape| shape.max_rank() as u128)
    }
    /// Returns true if every layer has exactly the split and rank that the method names.
    pub fn is_exact(&self) -> bool {
        self.rows.iter().all(|row| row.notes.is_empty())
    }

    pub(super) fn sum(&self, of: impl Fn(&KronShape) -> u128) -> u128 {
        self.rows.iter().map(|row| u128::from(row.linear.count()) * of(&row.shape)).sum()
    }
}

/// Returns the multiply-adds of one layer's forward pass per token: T = X·Cᵀ, U = A·T, Y += U·Bᵀ.
///
/// LoRA's A = \[1\] and the missing B of a full inner factor cost nothing.
pub fn multiply_adds(shape: &KronShape) -> u128 {
    let [a_out, a_in, b_out, c_in, width] =
        [shape.a_out(), shape.a_in(), shape.b_out(), shape.c_in(), shape.width()].map(|n| n as u128);
    let t = a_in * width * c_in;
    let u = if shape.outer() == Outer::One { 0 } else { a_out * a_in * width };
    let y = if shape.rank().is_some() { a_out * width * b_out } else { 0 };
    t + u + y
}

/// Returns the elements of T that one layer keeps for backward per token, a_in·r.
pub const fn saved_elements(shape: &KronShape) -> u128 {
    shape.a_in() as u128 * shape.width() as u128
}
