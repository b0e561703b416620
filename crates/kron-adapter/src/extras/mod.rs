//! [`Extras`]: what an adapter's file holds beyond ΔW, and that a merge folds into the model.
//!
//! ```text
//! magnitude   W' = m·(W + ΔW)/‖W + ΔW‖         DoRA: lora_magnitude_vector, dora_scale
//! change      b' = b + s·Δb                     lora_B.bias, diff_b, w_norm, b_norm, diff
//! copy        has to equal the model's tensor   base_layer.weight
//! experts     W'_e = W_e + s·B_e·A_e            target_parameters
//! ```
//!
//! [`read`](crate::read) refuses such a file, because ΔW alone is not its change;
//! [`read_whole`](crate::read_whole) returns both.

mod change;
mod experts;
mod magnitude;
mod take;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

pub use change::{ChangeKind, TensorChange};
pub use experts::Experts;
pub use magnitude::{Magnitude, Norm};
pub(crate) use take::{Convention, Taken, is_beyond, take};

/// How much of an adapter's file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// ΔW and trained tensors; anything else is refused.
    Delta,
    /// Everything that a merge folds. The rest is refused, or left out and listed.
    Whole { skip_unsupported: bool },
}

/// Tensor of an adapter's file that is left out, by the caller's choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// Name in the adapter's file.
    pub tensor: String,
    /// Reason why it cannot be merged.
    pub why: String,
}

/// Contents of an adapter's file beyond ΔW and trained tensors. Modules have the names of the adapter's layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    /// Magnitudes of DoRA, by the layer's module.
    pub magnitudes: BTreeMap<String, Magnitude>,
    /// Modules of layers that belong to an embedding, whose weight is never stored transposed.
    pub embeddings: BTreeSet<String>,
    /// Tensors of the model that change by addition or replacement, or have to be equal.
    pub changes: Vec<TensorChange>,
    /// LoRAs of stacks of experts.
    pub experts: Vec<Experts>,
    /// Tensors that were left out.
    pub skipped: Vec<Skipped>,
}

impl Extras {
    /// Returns true without anything that a merge has to fold or check.
    pub fn is_empty(&self) -> bool {
        let Self { magnitudes, embeddings, changes, experts, .. } = self;
        magnitudes.is_empty() && embeddings.is_empty() && changes.is_empty() && experts.is_empty()
    }
}
