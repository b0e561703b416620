//! Generation of text: one forward pass over the prompt, then one for each token, over a cache of keys and values.

mod log_probs;
mod sampler;
mod stop_texts;

use std::mem;
use std::time::{Duration, Instant};

use candle_core::DType;
use kron_adapter::text::printable_json;
use serde::Serialize;

use super::TrainedModel;
use crate::data::{ChatTemplate, Conventions, Message, TextStream};
use crate::error::{Result, invalid};
use crate::model::KvCache;
use log_probs::most_probable;
use sampler::Sampler;
use stop_texts::StopTexts;

/// Largest number of stop texts.
const MAX_STOPS: usize = 64;
/// Longest stop text in bytes.
const MAX_STOP: usize = 1024;
/// Largest number of tokens whose log-probabilities are kept at a place.
const MAX_LOG_PROBS: u64 = 1000;
/// Largest number of log-probabilities of a text, which take 16 bytes each.
const MAX_KEPT: u64 = 1 << 24;

/// Settings of a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Divisor of the logits; 0 always takes the most probable token.
    pub temperature: f64,
    /// Probability of the most probable tokens that are drawn from; 0 keeps one token.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// Largest number of tokens.
    pub max_tokens: u64,
    /// Texts before which a generation ends.
    pub stops: Vec<String>,
    /// Number of most probable tokens whose log-probabilities are kept at every place.
    pub log_probs: usize,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, seed: 0, max_tokens: 256, stops: Vec::new(), log_probs: 0 }
    }
}

impl GenerateOptions {
    /// Fails if a setting is out of range.
    ///
    /// # Errors
    /// The first such setting, with its rule.
    pub fn check(&self) -> Result<()> {
        for (name, value, high) in [("temperature", self.temperature, 100.0), ("top_p", self.top_p, 1.0)] {
            if !(0.0..=high).contains(&value) {
                return Err(invalid(format!("{name} is {value:?}, but it is a number from 0 to {high}")));
            }
        }
        for (name, value, low, high) in [
            ("seed", self.seed, 0, i64::MAX as u64),
            ("max_tokens", self.max_tokens, 1, 1 << 20),
            ("log_probs", self.log_probs as u64, 0, MAX_LOG_PROBS),
        ] {
            if !(low..=high).contains(&value) {
                return Err(invalid(format!("{name} is {value}, but it is an integer from {low} to {high}")));
            }
        }
        let (tokens, kept) = (self.max_tokens, self.log_probs as u64);
        if tokens * kept > MAX_KEPT {
            return Err(invalid(format!(
                "max_tokens is {tokens} and log_probs is {kept}, but their product is at most {MAX_KEPT}"
            )));
        }
        let stops = self.stops.len();
        if stops > MAX_STOPS {
            return Err(invalid(format!("there are {stops} stop texts, but at most {MAX_STOPS}")));
        }
        match self.stops.iter().map(String::len).find(|len| !(1..=MAX_STOP).contains(len)) {
            Some(len) => {
                Err(invalid(format!("a stop text has {len} bytes, but it has from 1 to {MAX_STOP}")))
            }
            None => Ok(()),
        }
    }
}

/// Reason of a text's end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// The model chose an end token.
    End,
    /// A stop text followed.
    Stop,
    /// The largest number of tokens was reached, or the model has no further position.
    Length,
}

/// Text that is generated: an iterator over its parts, each of whole characters.
pub struct Generation<'a> {
    model: &'a TrainedModel,
    max_tokens: usize,
    ends: Vec<u32>,
    cache: KvCache,
    prompt: usize,
    /// Ids that the model has not seen.
    next: Vec<u32>,
    /// Ids chosen, without an end token.
    ids: Vec<u32>,
    /// For each of them the most probable tokens, as many as were asked for.
    log_probs: Vec<Vec<(u32, f64)>>,
    likeliest: usize,
    sampler: Sampler,
    stream: TextStream<'a>,
    stops: StopTexts<'a>,
    ended: Option<Ended>,
    failed: bool,
    reading: Duration,
    writing: Duration,
}

/// Result of a generation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generated {
    /// Text, without the prompt.
    pub text: String,
    /// Reason of its end.
    pub ended: Ended,
    /// Number of the prompt's tokens.
    pub prompt_tokens: usize,
    /// Tokens that the model chose, without an end token.
    pub ids: Vec<u32>,
    /// For each of them the most probable tokens of its place and ln p of each, before the temperature; empty unless
    /// they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log_probs: Vec<Vec<(u32, f64)>>,
}

impl Generated {
    /// Renders the result as a line of JSON.
    ///
    /// # Errors
    /// JSON cannot express a value.
    pub fn json(&self) -> Result<String> {
        let json = serde_json::to_string(self).map_err(|e| invalid(format!("a result is not JSON: {e}")))?;
        Ok(format!("{}\n", printable_json(&json)))
    }
}

/// Language model with the settings of its generations.
pub struct Generator<'a> {
    model: &'a TrainedModel,
    options: &'a GenerateOptions,
    conventions: Conventions,
}

impl TrainedModel {
    /// Prepares generations.
    ///
    /// # Errors
    /// A setting is out of range, a file beside the tokenizer is malformed, or the model is an encoder.
    pub fn generator<'a>(&'a self, options: &'a GenerateOptions) -> Result<Generator<'a>> {
        options.check()?;
        match self.learner.body().output() {
            Some(_) => Ok(Generator { model: self, options, conventions: self.tokenizer.conventions()? }),
            None => Err(invalid("the model predicts no next token: it is an encoder")),
        }
    }
}

impl<'a> Generator<'a> {
    /// Starts the text that follows a prompt; the draws depend on the seed and on the number of the text.
    ///
    /// # Errors
    /// The prompt has no token or too many of them.
    pub fn text(&self, prompt: &str, number: usize) -> Result<Generation<'a>> {
        self.start(self.model.tokenizer.encode(prompt, usize::MAX)?, number)
    }

    /// Starts the assistant's answer to a conversation, in the layout of the model's chat template.
    ///
    /// # Errors
    /// As [`Generator::text`], or the model has no chat template, or it refuses the conversation.
    pub fn answer(&self, messages: &[Message], number: usize) -> Result<Generation<'a>> {
        let prompt = ChatTemplate::of(&self.conventions)?.render(messages, true)?;
        self.start(self.model.tokenizer.encode_more(&prompt)?, number)
    }

    fn start(&self, prompt: Vec<u32>, number: usize) -> Result<Generation<'a>> {
        let Self { model, options, conventions } = self;
        let (len, positions) = (prompt.len(), model.positions);
        match len {
            0 => return Err(invalid("a prompt has no token, but a text begins with at least one")),
            len if len > positions => {
                return Err(invalid(format!(
                    "a prompt has {len} tokens, but the model has {positions} positions"
                )));
            }
            _ => {}
        }
        Ok(Generation {
            model,
            // The last token is not read again.
            max_tokens: usize::try_from(options.max_tokens).unwrap_or(usize::MAX).min(positions - len + 1),
            ends: conventions.ends.clone(),
            cache: KvCache::default(),
            prompt: len,
            stream: TextStream::new(&model.tokenizer, &prompt),
            next: prompt,
            ids: Vec::new(),
            log_probs: Vec::new(),
            likeliest: options.log_probs,
            sampler: Sampler::new(options, u32::try_from(number).unwrap_or(u32::MAX)),
            stops: StopTexts::new(&options.stops),
            ended: None,
            failed: false,
            reading: Duration::ZERO,
            writing: Duration::ZERO,
        })
    }
}

impl Generation<'_> {
    /// Generates the text from its first part on.
    ///
    /// # Errors
    /// The model's scores are NaN or infinite, or candle fails.
    pub fn finish(&mut self) -> Result<Generated> {
        let text = self.collect::<Result<String>>()?;
        let ended = self.ended.unwrap_or(Ended::Length);
        let (ids, log_probs) = (self.ids.clone(), mem::take(&mut self.log_probs));
        Ok(Generated { text, ended, prompt_tokens: self.prompt, ids, log_probs })
    }

    /// Describes the time that the tokens so far took, and the memory of the cache.
    pub fn speed(&self) -> String {
        let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
        // The first token belongs to the pass over the prompt.
        let more = self.ids.len().saturating_sub(1);
        format!(
            "prompt: {} tokens, {:.1} tokens/s; text: {} tokens, {:.1} tokens/s; cache: {:.1} MiB",
            self.prompt,
            rate(self.prompt, self.reading),
            self.ids.len(),
            rate(more, self.writing),
            self.cache.bytes() as f64 / (1 << 20) as f64
        )
    }

    /// Chooses one token; returns the text that is complete with it.
    fn step(&mut self) -> Result<String> {
        let start = Instant::now();
        let logits = self.logits()?;
        let place = self.ids.len();
        let Some(id) = self.sampler.choose(&logits, u32::try_from(place).unwrap_or(u32::MAX)) else {
            let token = self.prompt + place + 1;
            return Err(invalid(format!(
                "the model's scores for token {token} are not finite, but its choice needs that"
            )));
        };
        let time = if self.cache.len() == self.prompt { &mut self.reading } else { &mut self.writing };
        *time += start.elapsed();
        if self.ends.contains(&id) {
            return self.end(Ended::End, String::new());
        }
        self.ids.push(id);
        if self.likeliest > 0 {
            self.log_probs.push(most_probable(&logits, self.likeliest));
        }
        self.next = vec![id];
        let (text, stopped) = self.stops.push(&self.stream.push(id)?);
        if stopped {
            self.ended = Some(Ended::Stop);
            return Ok(text);
        }
        if self.ids.len() == self.max_tokens { self.end(Ended::Length, text) } else { Ok(text) }
    }

    /// Ends the text with what was held back.
    fn end(&mut self, why: Ended, text: String) -> Result<String> {
        let (more, stopped) = self.stops.push(&self.stream.rest()?);
        self.ended = Some(if stopped { Ended::Stop } else { why });
        Ok(text + &more + &self.stops.rest())
    }

    fn logits(&mut self) -> Result<Vec<f32>> {
        let body = self.model.learner.body();
        let hidden = body.continued(&self.next, &mut self.cache)?;
        let logits = body.logits(&hidden)?;
        let logits = logits.ok_or_else(|| invalid("the model predicts no next token: it is an encoder"))?;
        Ok(logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ended.is_none() && !self.failed {
            match self.step() {
                Ok(text) if text.is_empty() => {}
                done => {
                    self.failed = done.is_err();
                    return Some(done);
                }
            }
        }
        None
    }
}
