//! Settings of a run, as a TOML file holds them.

mod check;

use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::compute::Compute;
use crate::error::{Result, invalid};
use crate::files;
pub use check::{FLOATS, INTEGERS, MAX_BATCH, Range};

/// Settings of one run, printed and saved in full, including the defaults.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Hugging Face folder, a `.gguf` file, or a `.bin` file of llama2.c.
    pub model: PathBuf,
    /// Tokenizer to use instead of the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Task to learn.
    pub task: Task,
    /// Device and precision.
    pub compute: Compute,
    /// Training, validation and test examples.
    pub data: Data,
    /// Trained parameters.
    pub adapter: AdapterConfig,
    /// Optimizer and schedule.
    pub train: Train,
}

/// Task to learn.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// Classification of a text by a new linear head.
    #[default]
    Classify,
    /// Prediction of the next token of plain text.
    Lm,
    /// Answers of an assistant, in the layout of the model's chat template.
    Chat,
    /// Multiple choice: the continuation with the highest mean log-probability is the answer.
    Choice,
}

/// Training, validation and test examples.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// JSONL file; plain text for language modelling.
    pub train: PathBuf,
    /// Validation set, which decides between learning rates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<PathBuf>,
    /// Test set, evaluated once at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
    /// Domain to select; examples of other domains are left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Number of training examples held out as the validation set, drawn with seed 0 whatever the run's seed.
    pub holdout: usize,
    /// Longest text in tokens; longer ones are truncated.
    pub max_len: usize,
    /// Number of training examples, drawn with seed 0 whatever the run's seed; 0 takes all.
    pub limit_train: usize,
    /// Number of validation examples and of test examples, drawn likewise; 0 takes all.
    pub limit_eval: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: PathBuf::new(),
            validation: None,
            test: None,
            domain: None,
            holdout: 0,
            max_len: 64,
            limit_train: 0,
            limit_eval: 0,
        }
    }
}

/// Fine-tuning method.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// No training: the model is evaluated unchanged.
    None,
    /// A new head alone.
    Head,
    /// All weights.
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

/// Trained parameters.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterConfig {
    /// Fine-tuning method.
    pub method: Method,
    /// Names or patterns of the adapted linear layers; `layer*` selects all layers inside the blocks.
    pub targets: Vec<String>,
    /// Rank r.
    pub rank: usize,
    /// alpha of the scale s = alpha / r.
    pub alpha: f32,
    /// Scale s, whatever the rank; 0 takes alpha / r.
    pub scale: f32,
    /// Rows of A; 0 takes 2 × 2 (Kron-LoRA) or a near-square shape (KronA).
    pub a_out: usize,
    /// Columns of A; 0 as for `a_out`.
    pub a_in: usize,
    /// Factor of LoKr; 0 takes a near-square shape.
    pub factor: usize,
    /// Terms of each layer's sum ΔW = Σ s·A ⊗ (B·C), of one shape.
    pub terms: usize,
    /// Dropout probability on the adapter's input.
    pub dropout: f32,
    /// Computes adapters by the fused op; `false` takes candle's own products and autograd, for comparison.
    pub fused: bool,
    /// Largest number of adapter parameters, which the rank (KronA: the shape) comes as near to as it can; 0 keeps the
    /// rank.
    pub match_params: u64,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            method: Method::Kron,
            targets: vec!["layer*".into()],
            rank: 8,
            alpha: 32.0,
            scale: 0.0,
            a_out: 0,
            a_in: 0,
            factor: 0,
            terms: 1,
            dropout: 0.0,
            fused: true,
            match_params: 0,
        }
    }
}

/// Course of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Linear decay to zero.
    #[default]
    Linear,
    /// Decay to zero along half a cosine.
    Cosine,
    /// No decay.
    Constant,
}

/// Optimizer and schedule.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// Passes over the training set.
    pub epochs: u64,
    /// Examples per step.
    pub batch: usize,
    /// Examples per forward pass; 0 takes the whole batch.
    pub micro_batch: usize,
    /// Keeps the inputs of a decoder's blocks alone, and computes the rest again in the backward pass.
    pub checkpointing: bool,
    /// Highest learning rate.
    #[serde(alias = "rate")]
    pub lr: f64,
    /// Highest learning rate of the new head beside an adapter; 0 takes `lr`.
    #[serde(alias = "head_rate")]
    pub head_lr: f64,
    /// Learning rate of the factor that starts at zero, relative to `lr` (LoRA+).
    pub lora_plus: f64,
    /// Course of the learning rate.
    pub schedule: Schedule,
    /// Fraction of all steps over which the learning rate rises from zero.
    pub warmup: f64,
    /// Weight decay.
    pub decay: f64,
    /// Largest norm of the gradient; 0 never clips it.
    pub clip: f64,
    /// Decay of AdamW's first and second moment.
    #[serde(deserialize_with = "two")]
    pub betas: [f64; 2],
    /// Term added to the root of AdamW's second moment.
    pub eps: f64,
    /// Seed for the order of examples, initial values and dropout.
    pub seed: u64,
    /// Steps between checkpoints; 0 writes only one at the end.
    pub save_every: u64,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            epochs: 3,
            batch: 16,
            micro_batch: 0,
            checkpointing: false,
            lr: 1e-3,
            head_lr: 0.0,
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

/// Reads an array of two numbers; TOML's own reader of arrays ignores further ones.
fn two<'de, D: Deserializer<'de>>(from: D) -> Result<[f64; 2], D::Error> {
    let all = Vec::<f64>::deserialize(from)?;
    <[f64; 2]>::try_from(all).map_err(|all| {
        D::Error::custom(format!("betas has {} numbers, but AdamW has two of them", all.len()))
    })
}

impl Config {
    /// Reads a TOML file; missing settings keep their defaults.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or has an unknown key.
    pub fn read(path: &Path) -> Result<Self> {
        files::toml(path)
    }

    /// Renders the settings as TOML, including the defaults.
    ///
    /// # Errors
    /// A path is not Unicode.
    pub fn text(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| invalid(format!("the settings cannot be written: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_with_the_earlier_names_of_the_learning_rates_are_read() {
        let earlier: Config = toml::from_str("[train]\nrate = 0.25\nhead_rate = 0.5\n").expect("TOML");
        let now: Config = toml::from_str("[train]\nlr = 0.25\nhead_lr = 0.5\n").expect("TOML");
        assert_eq!(earlier, now);
        assert_eq!((now.train.lr, now.train.head_lr), (0.25, 0.5));
        assert!(now.text().expect("TOML").contains("\nlr = 0.25\nhead_lr = 0.5\n"));
        assert!(toml::from_str::<Config>("[train]\nrate = 0.25\nlr = 0.5\n").is_err(), "one of them");
    }
}
