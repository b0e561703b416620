//! Command line: a settings file, and options that override it.

mod adapter;
mod bench;
mod generate;
mod inference;
mod way;

use std::path::{Path, PathBuf};

use crate::compute::{Device, Precision};
use crate::config::{Config, Schedule, Task};
use crate::studies::MAX_RUNS;
use adapter::{AdapterOptions, BatchOptions};
pub use bench::Bench;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
pub use generate::Generate;
pub use inference::Inference;

/// Fine-tunes pretrained models with Kron-LoRA, LoRA and related methods.
#[derive(Debug, Parser)]
#[command(name = "kron-train", version)]
pub struct Cli {
    /// Subcommand to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommand to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fine-tune a model; Ctrl-C saves and ends with exit code 130.
    Train {
        #[command(flatten)]
        settings: Box<Settings>,
        /// Folder for checkpoint, adapter, logs and report; empty for a new run.
        #[arg(long)]
        out: PathBuf,
        /// Resume the run in that folder from its checkpoint; a folder without one is refused.
        #[arg(long)]
        resume: bool,
        /// Seconds after which a rank of mpirun gives up waiting for another (1 to 86400).
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        rank_timeout: u64,
    },
    /// Compare methods over learning rates and seeds; finished runs are not repeated.
    Compare {
        /// TOML file with base settings, learning rates, seeds, entries and reference.
        #[arg(long)]
        grid: PathBuf,
        /// Folder for trials.csv and report.html.
        #[arg(long)]
        out: PathBuf,
        /// Largest number of runs to do now (1 to 100000). The peak memory of a process's first run alone is exact;
        /// later runs may include memory that the allocator still holds.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MAX_RUNS as u64))]
        runs: Option<u64>,
        /// Number of runs at a time, each on its share of the threads (1 to 1024); times and memory are those of a run
        /// alone only with 1.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
        jobs: u64,
    },
    /// Train one adapter on a chain of tasks, and evaluate the earlier tasks after each; a finished chain is not
    /// repeated.
    Sequential {
        #[command(flatten)]
        settings: Box<Settings>,
        /// Domains of the data set, in order.
        #[arg(long, value_delimiter = ',', required_unless_present = "grid")]
        domains: Vec<String>,
        /// TOML file for many chains: base settings, orders of domains or pairs of them, seeds, entries and reference;
        /// finished chains are not repeated.
        #[arg(long, conflicts_with = "domains")]
        grid: Option<PathBuf>,
        /// Folder for matrix.csv or chains.csv, and report.html.
        #[arg(long)]
        out: PathBuf,
        /// Number of chains of a grid at a time, each on its share of the threads (1 to 1024).
        #[arg(long, default_value_t = 1, requires = "grid", value_parser = clap::value_parser!(u64).range(1..=1024))]
        jobs: u64,
    },
    /// Evaluate a model, with an adapter that was trained for it: loss and accuracy on a file of examples, as JSON.
    #[command(after_help = "\
Example: kron-train eval MODEL --config RUN/config.toml --adapter RUN/adapter.safetensors --data test.jsonl")]
    Eval(Box<Inference>),
    /// Predict the label of each text or the answer of each question, with the scores of all, as JSONL.
    #[command(after_help = "\
Example: kron-train predict MODEL --config RUN/config.toml --adapter RUN/adapter.safetensors --data texts.jsonl")]
    Predict(Box<Inference>),
    /// Generate the text that follows a prompt, with a language model and an adapter that was trained for it.
    #[command(after_help = "\
Example: kron-train generate MODEL --adapter RUN/adapter.safetensors --prompt 'Once upon a time' --max-tokens 50")]
    Generate(Box<Generate>),
    /// Time the parts of a training step of a language model on random tokens, and measure its memory.
    #[command(after_help = "\
Example: kron-train bench --model MODEL --batch 8 --max-len 128 --rank 8")]
    Bench(Box<Bench>),
    /// Recover a planted update with Kron-LoRA and LoRA; needs no file.
    Demo {
        /// Seed of the planted update and the data (0 to 9223372036854775807).
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
        seed: u64,
    },
    /// Write a man page for the program and each of its commands.
    ///
    /// Existing pages with the same names are replaced.
    #[command(after_help = "Example: kron-train man ~/.local/share/man/man1")]
    Man {
        /// Existing folder for kron-train.1, kron-train-compare.1 and so on
        dir: PathBuf,
    },
    /// Print a shell's completions for the program.
    #[command(after_help = "\
Example: kron-train completions bash > ~/.local/share/bash-completion/completions/kron-train")]
    Completions {
        /// Shell
        shell: Shell,
    },
}

/// Settings of a run.
#[derive(Args, Debug)]
pub struct Settings {
    /// TOML file; missing settings keep their defaults.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Hugging Face folder, a .gguf file, or a .bin file of llama2.c.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Tokenizer to use instead of the model's own.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Task to learn.
    #[arg(long)]
    task: Option<Task>,
    /// Device: cpu or cuda:N.
    #[arg(long)]
    device: Option<Device>,
    /// Type of the base's weights and of activations (on the CPU, bf16 is that of products alone); trained parameters are float32.
    #[arg(long)]
    precision: Option<Precision>,
    /// File of training examples.
    #[arg(long)]
    train: Option<PathBuf>,
    /// File of validation examples.
    #[arg(long)]
    validation: Option<PathBuf>,
    /// File of test examples.
    #[arg(long)]
    test: Option<PathBuf>,
    /// Number of training examples held out as the validation set (0 to 4294967296).
    #[arg(long)]
    holdout: Option<usize>,
    /// Longest text in tokens (2 to 1048576).
    #[arg(long)]
    max_len: Option<usize>,
    /// Number of training examples; 0 takes all (0 to 4294967296).
    #[arg(long)]
    limit_train: Option<usize>,
    /// Number of validation examples and of test examples; 0 takes all (0 to 4294967296).
    #[arg(long)]
    limit_eval: Option<usize>,
    #[command(flatten)]
    adapter: AdapterOptions,
    /// Passes over the training set (1 to 1000000).
    #[arg(long)]
    epochs: Option<u64>,
    #[command(flatten)]
    batches: BatchOptions,
    /// Highest learning rate (0 to 1e30).
    #[arg(long, alias = "rate")]
    lr: Option<f64>,
    /// Highest learning rate of the new head; 0 takes that of --lr (0 to 1e30).
    #[arg(long, alias = "head-rate")]
    head_lr: Option<f64>,
    /// Learning rate of the factor that starts at zero, relative to --lr (1e-6 to 1e6).
    #[arg(long)]
    lora_plus: Option<f64>,
    /// Course of the learning rate.
    #[arg(long)]
    schedule: Option<Schedule>,
    /// Fraction of the steps over which the learning rate rises (0 to 1).
    #[arg(long)]
    warmup: Option<f64>,
    /// Largest norm of the gradient; 0 never clips it (0 to 1e9).
    #[arg(long)]
    clip: Option<f64>,
    /// Seed for the order of examples, initial values and dropout (0 to 9223372036854775807).
    #[arg(long)]
    seed: Option<u64>,
    /// Steps between checkpoints; 0 writes only one at the end (0 to 1099511627776).
    #[arg(long)]
    save_every: Option<u64>,
}

fn put<T>(setting: &mut T, option: Option<T>) {
    if let Some(value) = option {
        *setting = value;
    }
}

impl Settings {
    /// Returns the settings file.
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Returns the file's settings, overridden by the options.
    pub fn config(self) -> crate::Result<Config> {
        let mut config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        put(&mut config.model, self.model);
        config.tokenizer = self.tokenizer.or(config.tokenizer);
        put(&mut config.task, self.task);
        put(&mut config.compute.device, self.device);
        put(&mut config.compute.precision, self.precision);
        let data = &mut config.data;
        put(&mut data.train, self.train);
        data.validation = self.validation.or(data.validation.take());
        data.test = self.test.or(data.test.take());
        put(&mut data.holdout, self.holdout);
        put(&mut data.max_len, self.max_len);
        put(&mut data.limit_train, self.limit_train);
        put(&mut data.limit_eval, self.limit_eval);
        self.adapter.apply(&mut config.adapter);
        let train = &mut config.train;
        put(&mut train.epochs, self.epochs);
        self.batches.apply(train);
        put(&mut train.lr, self.lr);
        put(&mut train.head_lr, self.head_lr);
        put(&mut train.lora_plus, self.lora_plus);
        put(&mut train.schedule, self.schedule);
        put(&mut train.warmup, self.warmup);
        put(&mut train.clip, self.clip);
        put(&mut train.seed, self.seed);
        put(&mut train.save_every, self.save_every);
        config.check()?;
        Ok(config)
    }
}
