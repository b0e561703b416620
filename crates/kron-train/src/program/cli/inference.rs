//! Options of the commands that use a trained model.

use std::path::PathBuf;

use crate::Result;
use crate::config::{AdapterConfig, Config, MAX_BATCH, Task, Train};
use clap::Args;

use super::put;
use super::way::Way;

/// Trained model, and the file that it is used on.
#[derive(Args, Debug)]
pub struct Inference {
    /// Hugging Face folder, a .gguf file, or a .bin file of llama2.c.
    model: PathBuf,
    /// Adapter to put on the model: an adapter file, a PEFT folder, a LyCORIS file or a LoRA in GGUF.
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// Head of the task classify [default: the adapter's own, or head.safetensors beside the adapter].
    #[arg(long)]
    pub head: Option<PathBuf>,
    /// File of examples; predict needs no answers in it.
    #[arg(long)]
    pub data: PathBuf,
    /// File for the result, which does not exist yet [default: the standard output].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// config.toml of the run, for the settings that the options below do not give.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Task that was learned.
    #[arg(long)]
    task: Option<Task>,
    #[command(flatten)]
    way: Way,
    /// Longest text in tokens (2 to 1048576).
    #[arg(long)]
    max_len: Option<usize>,
    /// Examples per forward pass (1 to 1048576) [default: twice the run's batch].
    #[arg(long)]
    batch: Option<usize>,
}

impl Inference {
    /// Returns the settings of the run that the task depends on, overridden by the options.
    pub fn config(&self) -> Result<Config> {
        let run = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        // How the parameters were trained no longer matters; training evaluates with twice its batch.
        let train = Train { batch: run.train.batch.saturating_mul(2).min(MAX_BATCH), ..Train::default() };
        let mut config =
            Config { model: self.model.clone(), adapter: AdapterConfig::default(), train, ..run };
        config.data.train = self.data.clone();
        config.data.limit_eval = 0;
        put(&mut config.task, self.task);
        self.way.apply(&mut config);
        put(&mut config.data.max_len, self.max_len);
        put(&mut config.train.batch, self.batch);
        config.check()?;
        Ok(config)
    }
}
