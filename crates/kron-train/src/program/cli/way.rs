//! Options of the way in which a trained model computes.

use std::path::PathBuf;

use crate::compute::{Device, Precision};
use crate::config::Config;
use clap::Args;

use super::put;

/// Tokenizer, device and precision.
#[derive(Args, Debug)]
pub struct Way {
    /// Tokenizer to use instead of the model's own.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Device: cpu or cuda:N.
    #[arg(long)]
    device: Option<Device>,
    /// Type of the base's weights and of activations; on the CPU, bf16 is that of products alone.
    #[arg(long)]
    precision: Option<Precision>,
}

impl Way {
    /// Overrides the settings by the options that are given.
    pub fn apply(&self, config: &mut Config) {
        config.tokenizer = self.tokenizer.clone().or_else(|| config.tokenizer.take());
        put(&mut config.compute.device, self.device);
        put(&mut config.compute.precision, self.precision);
    }
}
