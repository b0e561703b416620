//! The linear layers of a model.

use kron_core::LayerDims;

use crate::{Error, Result};

/// Largest dimension that a plan accepts: a search over divisors takes at most its
/// square root in steps.
pub const MAX_DIM: usize = 1 << 28;

/// A kind of linear layer, with its count in the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Linear {
    pub(super) name: String,
    pub(super) dims: LayerDims,
    pub(super) count: u32,
}

impl Linear {
    /// Makes `count` layers of these dimensions.
    ///
    /// # Errors
    /// Fails on a dimension of 0 or above [`MAX_DIM`], and on a count of 0.
    pub fn new(name: impl Into<String>, dims: LayerDims, count: u32) -> Result<Self> {
        let name = name.into();
        check_dim(&format!("d_out of {name}"), dims.d_out)?;
        check_dim(&format!("d_in of {name}"), dims.d_in)?;
        if count == 0 {
            return Err(Error::data(format!("the count of {name} is 0, but a layer occurs at least once")));
        }
        Ok(Self { name, dims, count })
    }

    /// Name of the layer, such as `q_proj`.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Width of the output and of the input.
    pub const fn dims(&self) -> LayerDims {
        self.dims
    }
    /// Number of such layers in the model.
    pub const fn count(&self) -> u32 {
        self.count
    }
}

/// The linear layers that an adapter trains, and the count of other trained parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub(super) name: String,
    pub(super) hidden: usize,
    pub(super) linears: Vec<Linear>,
    pub(super) also_trained: u64,
}

impl Model {
    /// Makes a model of hidden size `hidden`; `also_trained` counts the parameters
    /// trained without an adapter, such as a new classification head.
    ///
    /// # Errors
    /// Fails without a layer, and on a hidden size of 0 or above [`MAX_DIM`].
    pub fn new(
        name: impl Into<String>,
        hidden: usize,
        linears: Vec<Linear>,
        also_trained: u64,
    ) -> Result<Self> {
        let name = name.into();
        check_dim(&format!("hidden size of {name}"), hidden)?;
        if linears.is_empty() {
            return Err(Error::data(format!("{name} has no linear layer, but a plan is for at least one")));
        }
        Ok(Self { name, hidden, linears, also_trained })
    }

    /// Name of the model.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Hidden size, from which the paper derives its split.
    pub const fn hidden(&self) -> usize {
        self.hidden
    }
    /// The adapted layers.
    pub fn linears(&self) -> &[Linear] {
        &self.linears
    }
    /// Parameters trained without an adapter.
    pub const fn also_trained(&self) -> u64 {
        self.also_trained
    }
}

fn check_dim(what: &str, dim: usize) -> Result<()> {
    if (1..=MAX_DIM).contains(&dim) {
        return Ok(());
    }
    Err(Error::data(format!("{what} is {dim}, but a dimension is between 1 and {MAX_DIM}")))
}
