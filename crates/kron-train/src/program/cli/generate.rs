//! Options of the command that generates text.

use std::path::PathBuf;

use crate::Result;
use crate::config::{Config, Task};
use crate::inference::GenerateOptions;
use clap::{ArgGroup, Args};

use super::put;
use super::way::Way;

/// Language model, and the prompts that it continues.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("input").required(true))]
pub struct Generate {
    /// Hugging Face folder, a .gguf file, or a .bin file of llama2.c.
    model: PathBuf,
    /// Adapter to put on the model: an adapter file, a PEFT folder, a LyCORIS file or a LoRA in GGUF.
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// Text to continue.
    #[arg(long, group = "input", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// JSONL file with a prompt in each line, with --chat the messages of a conversation; the result is JSONL too.
    #[arg(long, group = "input")]
    pub prompts: Option<PathBuf>,
    /// Answer as an assistant, by the model's chat template; --prompt is a user's message.
    #[arg(long)]
    pub chat: bool,
    /// Divisor of the logits; 0 always takes the most probable token (0 to 100) [default: 0].
    #[arg(long, allow_hyphen_values = true)]
    temperature: Option<f64>,
    /// Draw from the most probable tokens that have this probability together (0 to 1) [default: 1].
    #[arg(long, allow_hyphen_values = true)]
    top_p: Option<f64>,
    /// Seed of the draws (0 to 9223372036854775807) [default: 0].
    #[arg(long)]
    seed: Option<u64>,
    /// Largest number of tokens (1 to 1048576) [default: 256].
    #[arg(long)]
    max_tokens: Option<u64>,
    /// Text before which the result ends, of at most 1024 bytes; up to 64 times.
    #[arg(long, allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Add to the JSON the most probable tokens of every place, this many of them, with ln p (0 to 1000, and times
    /// --max-tokens at most 16777216) [default: 0].
    #[arg(long)]
    log_probs: Option<usize>,
    /// Print one JSON object when the text is complete: text, ended, prompt_tokens and ids.
    #[arg(long)]
    pub json: bool,
    /// File for the result, which does not exist yet [default: the standard output].
    #[arg(long)]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    way: Way,
}

impl Generate {
    /// Returns the settings of the model; there are no examples among them.
    pub fn config(&self) -> Config {
        let mut config = Config { model: self.model.clone(), task: Task::Lm, ..Config::default() };
        // The prompts are the data.
        config.data.train = self.prompts.clone().unwrap_or_else(|| "-".into());
        self.way.apply(&mut config);
        config
    }

    /// Returns `true` if results are JSON.
    pub const fn is_json(&self) -> bool {
        self.json || self.prompts.is_some()
    }

    /// Returns the settings of the generation.
    ///
    /// # Errors
    /// An option is out of range, or has no effect.
    pub fn options(&self) -> Result<GenerateOptions> {
        let mut options = GenerateOptions { stops: self.stop.clone(), ..GenerateOptions::default() };
        put(&mut options.temperature, self.temperature);
        put(&mut options.top_p, self.top_p);
        put(&mut options.seed, self.seed);
        put(&mut options.max_tokens, self.max_tokens);
        put(&mut options.log_probs, self.log_probs);
        options.check()?;
        if options.log_probs > 0 && !self.is_json() {
            return Err(crate::Error::Invalid(
                "--log-probs is given, but only the results of --json and --prompts have them".into(),
            ));
        }
        Ok(options)
    }
}
