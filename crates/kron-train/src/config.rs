//! Everything that decides a run, as it stands in a TOML file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::compute::Compute;
use crate::error::{Result, file, invalid};

/// One run. Printed and saved as a whole, defaults included.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A folder of Hugging Face, or a `.bin` of llama2.c.
    pub model: PathBuf,
    /// Another tokenizer than the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// What is learned.
    pub task: Task,
    /// Where, and in which numbers.
    pub compute: Compute,
    /// The examples.
    pub data: Data,
    /// What is trained.
    pub adapter: AdapterConfig,
    /// How.
    pub train: Train,
}

/// What is learned.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// The class of a text, by a new linear head.
    #[default]
    Classify,
    /// The next token, on plain text.
    Lm,
    /// Which continuation of a question is right, by its mean log-probability.
    Choice,
}

/// The examples.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// JSONL; plain text for language modelling.
    pub train: PathBuf,
    /// Decides between learning rates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Looked at once, at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Only examples of this domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Longest text in tokens; the rest is cut away.
    pub max_len: usize,
    /// Training examples, drawn by the seed 0 whatever the run's seed; 0 takes all.
    pub limit_train: usize,
    /// The same for validation and test.
    pub limit_eval: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: PathBuf::new(),
            validation: None,
            test: None,
            domain: None,
            max_len: 64,
            limit_train: 0,
            limit_eval: 0,
        }
    }
}

/// How a model is trained.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Nothing: the model as it is.
    None,
    /// A new head alone.
    Head,
    /// Every weight.
    Full,
    /// LoRA.
    Lora,
    /// Kron-LoRA.
    #[default]
    Kron,
    /// KronA: a full inner factor.
    Krona,
    /// LoKr as PEFT shapes it.
    Lokr,
}

/// What is trained.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterConfig {
    /// How.
    pub method: Method,
    /// Names or patterns of the linear layers; `layer*` is every one inside a block.
    pub targets: Vec<String>,
    /// r.
    pub rank: usize,
    /// alpha, in s = alpha / r.
    pub alpha: f32,
    /// Columns of A; 0 takes the paper's rule (Kron-LoRA) or near-square (KronA).
    pub a_in: usize,
    /// Rows of A; 0 as for `a_in`.
    pub a_out: usize,
    /// LoKr's factor; 0 is near-square.
    pub factor: usize,
    /// Dropout on the adapter's input.
    pub dropout: f32,
    /// Whether this repository's op computes the adapter; if not, candle's own products and autograd do, to be
    /// compared with.
    pub fused: bool,
    /// A number of adapter parameters to come nearest to, by the rank (KronA: by the shape); 0 keeps the rank.
    pub match_params: u64,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            method: Method::Kron,
            targets: vec!["layer*".into()],
            rank: 8,
            alpha: 32.0,
            a_in: 0,
            a_out: 0,
            factor: 0,
            dropout: 0.0,
            fused: true,
            match_params: 0,
        }
    }
}

/// The learning rate's course after the warm-up.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Down to zero in a straight line.
    #[default]
    Linear,
    /// Down to zero along half a cosine.
    Cosine,
    /// As it is.
    Constant,
}

/// How it is trained.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Passes over the training set.
    pub epochs: u64,
    /// Examples of one step.
    pub batch: usize,
    /// Examples of one forward pass; 0 takes the whole batch.
    pub micro_batch: usize,
    /// Highest learning rate.
    pub rate: f64,
    /// The new head's own highest rate beside an adapter; 0 takes `rate`.
    pub head_rate: f64,
    /// The rate of the factor that starts at zero, relative to it (LoRA+).
    pub lora_plus: f64,
    /// Its course.
    pub schedule: Schedule,
    /// Share of all steps over which the rate rises from zero.
    pub warmup: f64,
    /// Weight decay.
    pub decay: f64,
    /// Longest gradient; 0 never shortens it.
    pub clip: f64,
    /// AdamW's decays of the first and the second moment.
    pub betas: [f64; 2],
    /// Added to the root of AdamW's second moment.
    pub eps: f64,
    /// Order of the examples, first values, dropout.
    pub seed: u64,
    /// Steps between checkpoints; 0 writes one at the end.
    pub save_every: u64,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 3,
            batch: 16,
            micro_batch: 0,
            rate: 1e-3,
            head_rate: 0.0,
            lora_plus: 1.0,
            schedule: Schedule::Linear,
            warmup: 0.06,
            decay: 0.0,
            clip: 1.0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            seed: 0,
            save_every: 100,
        }
    }
}

impl Config {
    /// Reads a file; what it does not name keeps its default.
    ///
    /// # Errors
    /// A file that is not there, is no TOML, or has a name that is not known.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| file(path, e))?;
        toml::from_str(&text).map_err(|e| file(path, e))
    }

    /// The file that says the same, every value written out.
    ///
    /// # Errors
    /// A path that is no Unicode.
    pub fn text(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| invalid(format!("the settings cannot be written: {e}")))
    }

    /// That every number is in its range.
    ///
    /// # Errors
    /// The first that is not, with its rule.
    pub fn check(&self) -> Result<()> {
        let (train, adapter) = (&self.train, &self.adapter);
        let paths = [("model", &self.model), ("data.train", &self.data.train)];
        if let Some((name, _)) = paths.into_iter().find(|(_, path)| path.as_os_str().is_empty()) {
            return Err(invalid(format!("{name} is not set, but a run needs it")));
        }
        let at_least_one = [
            ("train.epochs", train.epochs as usize),
            ("train.batch", train.batch),
            ("adapter.rank", adapter.rank),
            ("data.max_len - 1", self.data.max_len.saturating_sub(1)),
        ];
        if let Some((name, _)) = at_least_one.into_iter().find(|(_, n)| *n == 0) {
            return Err(invalid(format!("{name} is 0, but it is at least 1")));
        }
        let not_negative = [
            ("train.rate", train.rate),
            ("train.head_rate", train.head_rate),
            ("train.lora_plus", train.lora_plus),
            ("train.decay", train.decay),
            ("train.clip", train.clip),
            ("train.eps", train.eps),
        ];
        if let Some((name, value)) = not_negative.into_iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return Err(invalid(format!("{name} is {value}, but it is a finite number of at least 0")));
        }
        if train.lora_plus == 0.0 {
            return Err(invalid(
                "train.lora_plus is 0, but then the factor that starts at zero stays there, and ΔW with it",
            ));
        }
        // The head's rate is kept as its ratio to the other.
        if train.rate == 0.0 && train.head_rate > 0.0 {
            return Err(invalid(format!(
                "train.rate is 0 and train.head_rate {}, but a head's own rate needs another beside it: \
                 method head trains the head alone, at train.rate",
                train.head_rate
            )));
        }
        if let Some(beta) = train.betas.into_iter().find(|beta| !(0.0..1.0).contains(beta)) {
            return Err(invalid(format!("train.betas has {beta}, but a decay is at least 0 and below 1")));
        }
        if !(0.0..=1.0).contains(&train.warmup) {
            return Err(invalid(format!("train.warmup is {}, but it is a share from 0 to 1", train.warmup)));
        }
        if !adapter.fused && adapter.dropout > 0.0 {
            return Err(invalid(format!(
                "adapter.dropout is {}, but adapter.fused = false takes none",
                adapter.dropout
            )));
        }
        if adapter.method == Method::Head && self.task != Task::Classify {
            return Err(invalid("method head trains a new head, which only the task classify has"));
        }
        self.compute.check(adapter.method)
    }
}
