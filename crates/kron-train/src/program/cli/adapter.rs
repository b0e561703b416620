//! Options of an adapter and of a step, which training and its benchmark share.

use crate::config::{AdapterConfig, Method, Train};
use clap::Args;

use super::put;

/// Trained parameters.
#[derive(Args, Debug)]
pub struct AdapterOptions {
    /// Fine-tuning method.
    #[arg(long)]
    method: Option<Method>,
    /// Names or patterns of the adapted layers.
    #[arg(long, value_delimiter = ',')]
    targets: Option<Vec<String>>,
    /// Rank r (1 to 65536).
    #[arg(long)]
    rank: Option<usize>,
    /// alpha of the scale s = alpha / r (0 to 1e6).
    #[arg(long)]
    alpha: Option<f32>,
    /// Scale s, whatever the rank; 0 takes alpha / r (0 to 1e6).
    #[arg(long)]
    scale: Option<f32>,
    /// Rows of A; 0 takes the method's rule (0 to 1048576).
    #[arg(long)]
    a_out: Option<usize>,
    /// Columns of A; 0 takes the method's rule (0 to 1048576).
    #[arg(long)]
    a_in: Option<usize>,
    /// Factor of LoKr; 0 takes a near-square shape (0 to 1048576).
    #[arg(long)]
    factor: Option<usize>,
    /// Terms of each layer's sum of Kronecker products, for kron and krona (1 to 16).
    #[arg(long)]
    terms: Option<usize>,
    /// Dropout probability on the adapter's input (0 to 0.99).
    #[arg(long)]
    dropout: Option<f32>,
    /// Compute adapters by the fused op; false takes candle's own products and autograd.
    #[arg(long)]
    fused: Option<bool>,
    /// Largest number of adapter parameters, met by the rank; 0 keeps --rank (0 to 1099511627776).
    #[arg(long)]
    match_params: Option<u64>,
}

impl AdapterOptions {
    /// Overrides the settings by the options that are given.
    pub fn apply(self, adapter: &mut AdapterConfig) {
        put(&mut adapter.method, self.method);
        put(&mut adapter.targets, self.targets);
        put(&mut adapter.rank, self.rank);
        put(&mut adapter.alpha, self.alpha);
        put(&mut adapter.scale, self.scale);
        put(&mut adapter.a_in, self.a_in);
        put(&mut adapter.a_out, self.a_out);
        put(&mut adapter.factor, self.factor);
        put(&mut adapter.terms, self.terms);
        put(&mut adapter.dropout, self.dropout);
        put(&mut adapter.fused, self.fused);
        put(&mut adapter.match_params, self.match_params);
    }
}

/// Examples of a step, and how they are computed.
#[derive(Args, Debug)]
pub struct BatchOptions {
    /// Examples per step (1 to 1048576).
    #[arg(long)]
    batch: Option<usize>,
    /// Examples per forward pass; 0 takes the whole batch (0 to 1048576).
    #[arg(long)]
    micro_batch: Option<usize>,
    /// Keep the inputs of a decoder's blocks alone and compute the rest again, to save memory.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    checkpointing: Option<bool>,
}

impl BatchOptions {
    /// Overrides the settings by the options that are given.
    pub fn apply(self, train: &mut Train) {
        put(&mut train.batch, self.batch);
        put(&mut train.micro_batch, self.micro_batch);
        put(&mut train.checkpointing, self.checkpointing);
    }
}
