//! The command line: a config file, and options that overwrite it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use kron_train::compute::{Device, Precision};
use kron_train::config::{Config, Method, Schedule, Task};

/// Fine-tunes pretrained models with Kron-LoRA and its rivals.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fine-tune a model; Ctrl-C saves and ends.
    Train {
        #[command(flatten)]
        settings: Box<Settings>,
        /// Folder for checkpoint, adapter, logs and report.
        #[arg(long)]
        out: PathBuf,
        /// Go on with the run in that folder.
        #[arg(long)]
        resume: bool,
    },
    /// Compare methods over learning rates and seeds; what is done already is not run again.
    Compare {
        /// A TOML file: base settings, rates, seeds, entries, reference.
        #[arg(long)]
        grid: PathBuf,
        /// Folder for trials.csv and report.html.
        #[arg(long)]
        out: PathBuf,
        /// Runs to do now; the others are left. Only the first run of a process has a peak of memory
        /// without what an earlier one left in the allocator.
        #[arg(long)]
        runs: Option<std::num::NonZeroU64>,
    },
    /// Learn tasks one after the other with one adapter, and look back.
    Sequential {
        #[command(flatten)]
        settings: Box<Settings>,
        /// Domains of the data set, in order.
        #[arg(long, value_delimiter = ',', required_unless_present = "grid")]
        domains: Vec<String>,
        /// A TOML file instead: base settings, orders of domains or all their pairs, seeds, entries, reference;
        /// what is done already is not run again.
        #[arg(long, conflicts_with = "domains")]
        grid: Option<PathBuf>,
        /// Folder for matrix.csv or chains.csv, and report.html.
        #[arg(long)]
        out: PathBuf,
    },
    /// Recover a planted update with Kron-LoRA and LoRA; needs no file.
    Demo {
        /// Of the planted update and the data.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

/// Settings of a run.
#[derive(Args, Debug)]
pub struct Settings {
    /// A TOML file; what it leaves out keeps its default.
    #[arg(long)]
    config: Option<PathBuf>,
    /// A folder of Hugging Face, or a .bin of llama2.c.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Another tokenizer than the model's own.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// What is learned.
    #[arg(long)]
    task: Option<Task>,
    /// Where everything is computed: cpu or cuda:N.
    #[arg(long)]
    device: Option<Device>,
    /// Numbers of the base's weights and of activations; all that is trained is float32.
    #[arg(long)]
    precision: Option<Precision>,
    /// Training examples.
    #[arg(long)]
    train: Option<PathBuf>,
    /// Validation examples.
    #[arg(long)]
    validation: Option<PathBuf>,
    /// Test examples.
    #[arg(long)]
    test: Option<PathBuf>,
    /// Longest text in tokens.
    #[arg(long)]
    max_len: Option<usize>,
    /// Training examples that are used; 0 takes all.
    #[arg(long)]
    limit_train: Option<usize>,
    /// Validation and test examples that are used; 0 takes all.
    #[arg(long)]
    limit_eval: Option<usize>,
    /// How the model is trained.
    #[arg(long)]
    method: Option<Method>,
    /// Names or patterns of the adapted layers.
    #[arg(long, value_delimiter = ',')]
    targets: Option<Vec<String>>,
    /// r.
    #[arg(long)]
    rank: Option<usize>,
    /// alpha.
    #[arg(long)]
    alpha: Option<f32>,
    /// Columns of A; 0 takes the method's rule.
    #[arg(long)]
    a_in: Option<usize>,
    /// Rows of A; 0 takes the method's rule.
    #[arg(long)]
    a_out: Option<usize>,
    /// LoKr's factor; 0 is near-square.
    #[arg(long)]
    factor: Option<usize>,
    /// Dropout on the adapter's input.
    #[arg(long)]
    dropout: Option<f32>,
    /// Whether this repository's op computes the adapter, or candle's own products and autograd.
    #[arg(long)]
    fused: Option<bool>,
    /// Adapter parameters to come nearest to.
    #[arg(long)]
    match_params: Option<u64>,
    /// Passes over the training set.
    #[arg(long)]
    epochs: Option<u64>,
    /// Examples of one step.
    #[arg(long)]
    batch: Option<usize>,
    /// Examples of one forward pass; 0 takes the batch.
    #[arg(long)]
    micro_batch: Option<usize>,
    /// Highest learning rate.
    #[arg(long)]
    rate: Option<f64>,
    /// The new head's own highest rate; 0 takes `rate`.
    #[arg(long)]
    head_rate: Option<f64>,
    /// The rate of the factor that starts at zero, relative to it.
    #[arg(long)]
    lora_plus: Option<f64>,
    /// The rate's course.
    #[arg(long)]
    schedule: Option<Schedule>,
    /// Share of the steps over which the rate rises.
    #[arg(long)]
    warmup: Option<f64>,
    /// Longest gradient; 0 never shortens it.
    #[arg(long)]
    clip: Option<f64>,
    /// Order, first values and dropout.
    #[arg(long)]
    seed: Option<u64>,
    /// Steps between checkpoints; 0 writes one at the end.
    #[arg(long)]
    save_every: Option<u64>,
}

impl Settings {
    /// The file's settings with the options' in their place.
    pub fn config(self) -> kron_train::Result<Config> {
        fn put<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
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
        put(&mut data.max_len, self.max_len);
        put(&mut data.limit_train, self.limit_train);
        put(&mut data.limit_eval, self.limit_eval);
        let adapter = &mut config.adapter;
        put(&mut adapter.method, self.method);
        put(&mut adapter.targets, self.targets);
        put(&mut adapter.rank, self.rank);
        put(&mut adapter.alpha, self.alpha);
        put(&mut adapter.a_in, self.a_in);
        put(&mut adapter.a_out, self.a_out);
        put(&mut adapter.factor, self.factor);
        put(&mut adapter.dropout, self.dropout);
        put(&mut adapter.fused, self.fused);
        put(&mut adapter.match_params, self.match_params);
        let train = &mut config.train;
        put(&mut train.epochs, self.epochs);
        put(&mut train.batch, self.batch);
        put(&mut train.micro_batch, self.micro_batch);
        put(&mut train.rate, self.rate);
        put(&mut train.head_rate, self.head_rate);
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
