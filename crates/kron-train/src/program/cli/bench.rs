//! Options of the command that times a training step.

use std::path::PathBuf;

use crate::Result;
use crate::compute::{Device, Precision};
use crate::config::{Config, Task};
use clap::Args;

use super::adapter::{AdapterOptions, BatchOptions};
use super::put;

/// Language model, and the shape of a step.
#[derive(Args, Debug)]
pub struct Bench {
    /// TOML file of a run, for the settings that the options do not give.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Hugging Face folder, a .gguf file, or a .bin file of llama2.c.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Device: cpu or cuda:N.
    #[arg(long)]
    device: Option<Device>,
    /// Type of the base's weights and of activations (on the CPU, bf16 is that of products alone); trained parameters are float32.
    #[arg(long)]
    precision: Option<Precision>,
    #[command(flatten)]
    adapter: AdapterOptions,
    #[command(flatten)]
    batches: BatchOptions,
    /// Tokens of every text (2 to 1048576).
    #[arg(long)]
    max_len: Option<usize>,
    /// Seed of the tokens, initial values and dropout (0 to 9223372036854775807).
    #[arg(long)]
    seed: Option<u64>,
    /// Steps to take; the first is not counted (2 to 100000).
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub steps: u32,
    /// Print the times as JSON.
    #[arg(long)]
    pub json: bool,
}

impl Bench {
    /// Returns the settings of a step; there are no examples among them.
    pub fn config(self) -> Result<Config> {
        let mut config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        config.task = Task::Lm;
        // The tokens are random.
        config.data.train = "-".into();
        put(&mut config.model, self.model);
        put(&mut config.compute.device, self.device);
        put(&mut config.compute.precision, self.precision);
        self.adapter.apply(&mut config.adapter);
        self.batches.apply(&mut config.train);
        put(&mut config.data.max_len, self.max_len);
        put(&mut config.train.seed, self.seed);
        config.check()?;
        Ok(config)
    }
}
