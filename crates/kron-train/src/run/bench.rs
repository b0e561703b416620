//! [`bench`]: the parts of a training step, timed on random tokens.

use std::time::{Duration, Instant};

use candle_core::Device;
use kron_candle::{AdamW, DropoutKey, Gradients, product_time};
use kron_core::philox;
use serde::Serialize;

use super::learner::Learner;
use super::loss_scale::LossScale;
use super::resources::{device_mib, peak_mib};
use crate::config::{Config, Method, Task};
use crate::data::{Dataset, Examples, Tokens};
use crate::error::{Error, Result, invalid};
use crate::model::{Weights, next_token_loss};

/// Times of a training step: the one of median time, without the first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepTimes {
    /// Method with its shapes.
    pub method: String,
    /// Number of trained parameters.
    pub params: usize,
    /// Number of texts of a step.
    pub batch: usize,
    /// Tokens of a text.
    pub max_len: usize,
    /// Number of timed steps, without the first.
    pub steps: usize,
    /// Threads of the process's pool.
    pub threads: usize,
    /// Whole step, in milliseconds.
    pub step_ms: f64,
    /// Tokens of a step by its seconds.
    pub tokens_per_second: f64,
    /// Parts of a step, which follow each other.
    pub parts_ms: PartTimes,
    /// Sum of the parts.
    pub sum_of_parts_ms: f64,
    /// Products with frozen float32 matrices on the CPU, which lie within the parts; `None` without any.
    pub products_ms: Option<f64>,
    /// Highest resident memory of the process, in MiB, where the system reports it.
    pub peak_mib: Option<f64>,
    /// GPU memory in use after a backward pass, by all processes, in MiB; `None` for the CPU.
    pub device_mib: Option<u64>,
}

/// Milliseconds of the parts of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PartTimes {
    /// Embedding, blocks and last norm.
    pub forward: f64,
    /// Output product and loss; with a frozen output matrix also its backward pass.
    pub output: f64,
    /// Backward pass of the rest; with checkpointing it computes the blocks again.
    pub backward: f64,
    /// Sum of the micro-batches' gradients, their norm, and its limit.
    pub gradients: f64,
    /// AdamW.
    pub optimizer: f64,
}

impl PartTimes {
    /// Returns the parts in order, with their names.
    pub const fn named(&self) -> [(&'static str, f64); 5] {
        [
            ("forward of the blocks", self.forward),
            ("output product and loss", self.output),
            ("backward of the blocks", self.backward),
            ("norm and sum of the gradients", self.gradients),
            ("optimizer", self.optimizer),
        ]
    }
}

impl StepTimes {
    /// Renders the times as a line of JSON.
    ///
    /// # Errors
    /// JSON cannot express a value.
    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|e| invalid(format!("the times are not JSON: {e}")))
    }
}

/// Trains a language model for some steps on random tokens of equal lengths, and times the parts of a step.
///
/// # Errors
/// The settings do not fit the model, the model is an encoder, nothing is trained, or there are fewer than two steps.
pub fn bench(config: &Config, weights: &Weights, steps: usize) -> Result<StepTimes> {
    let config = &Config { task: Task::Lm, ..config.clone() };
    config.check()?;
    if steps < 2 {
        return Err(invalid(format!("{steps} steps are asked for, but the first is not counted")));
    }
    if config.adapter.method == Method::None {
        return Err(invalid("the method none trains nothing, so there is no step to time"));
    }
    let data =
        Dataset { labels: Vec::new(), train: Examples::Plain(Vec::new()), validation: None, test: None };
    let learner = Learner::new(config, weights, &data)?;
    let mut bench = Bench::new(config, weights, learner)?;
    let mut laps = (0..steps as u64).map(|step| bench.step(step)).collect::<Result<Vec<_>>>()?;
    Ok(bench.times(laps.split_off(1)))
}

/// Number of parts.
const PARTS: usize = 5;

/// Times of one step.
#[derive(Clone, Copy, Default)]
struct Laps {
    parts: [Duration; PARTS],
    step: Duration,
    products: Duration,
}

/// Clock of a step's parts.
struct Clock<'a> {
    device: &'a Device,
    last: Instant,
    parts: [Duration; PARTS],
}

impl Clock<'_> {
    /// Ends a part, which began at the end of the part before it.
    fn lap(&mut self, part: usize) -> Result<()> {
        // A GPU computes behind the calls.
        self.device.synchronize()?;
        let now = Instant::now();
        self.parts[part] += now - self.last;
        self.last = now;
        Ok(())
    }
}

struct Bench<'a> {
    config: &'a Config,
    learner: Learner,
    optimizer: AdamW,
    scale: LossScale,
    device: &'a Device,
    vocabulary: usize,
    device_mib: Option<u64>,
}

impl<'a> Bench<'a> {
    fn new(config: &'a Config, weights: &'a Weights, learner: Learner) -> Result<Self> {
        let optimizer = learner.optimizer(&config.train)?;
        let scale = LossScale::new(config.compute.precision);
        let (device, vocabulary) = (weights.device(), weights.vocabulary());
        Ok(Self { config, learner, optimizer, scale, device, vocabulary, device_mib: None })
    }

    /// Returns the texts of a step, of arbitrary tokens.
    fn texts(&self, step: u64) -> Vec<Vec<u32>> {
        let (seed, len) = (self.config.train.seed, self.config.data.max_len);
        let token = |row: usize, at: usize| {
            let place = [at as u32, row as u32, step as u32, 0x6265_6e63];
            let bits = philox(place, [seed as u32, (seed >> 32) as u32])[0];
            ((u64::from(bits) * self.vocabulary as u64) >> 32) as u32
        };
        (0..self.config.train.batch).map(|row| (0..len).map(|at| token(row, at)).collect()).collect()
    }

    fn step(&mut self, step: u64) -> Result<Laps> {
        let (train, texts, device) = (&self.config.train, self.texts(step), self.device);
        let (begin, products) = (Instant::now(), product_time());
        let mut clock = Clock { device, last: begin, parts: [Duration::ZERO; PARTS] };
        let mut gradients = self.gradients(step, &texts, &mut clock)?;
        let mut norm = gradients.norm()?;
        while !norm.is_finite() && self.scale.shrink() {
            gradients = self.gradients(step, &texts, &mut clock)?;
            norm = gradients.norm()?;
        }
        if !norm.is_finite() {
            return Err(Error::Exploded { step: step + 1, gradient: norm });
        }
        if train.clip > 0.0 {
            gradients.clip(train.clip)?;
        }
        clock.lap(3)?;
        self.optimizer.step(&gradients, train.lr)?;
        clock.lap(4)?;
        Ok(Laps { parts: clock.parts, step: begin.elapsed(), products: product_time() - products })
    }

    /// Returns the gradients of the mean loss of some texts, as a training step does.
    fn gradients(&mut self, step: u64, texts: &[Vec<u32>], clock: &mut Clock) -> Result<Gradients> {
        let (train, factor, body) = (&self.config.train, self.scale.factor(), self.learner.body());
        let micro = if train.micro_batch == 0 { texts.len() } else { train.micro_batch };
        let mut gradients = Gradients::new(&self.optimizer.vars());
        for (part, texts) in texts.chunks(micro).enumerate() {
            let key = DropoutKey { seed: train.seed, offset: step * train.batch as u64 + part as u64 };
            let tokens = Tokens::new(texts);
            let hidden = body.hidden(&tokens, Some(key))?;
            clock.lap(0)?;
            let loss = next_token_loss(body, &hidden, &tokens, &vec![1; texts.len()])?.mean_all()?;
            let value = loss.to_scalar::<f32>()?;
            clock.lap(1)?;
            if !value.is_finite() {
                return Err(Error::Diverged { step: step + 1, loss: value });
            }
            let scaled = if factor == 1.0 { loss } else { (loss * factor)? };
            let store = scaled.backward()?;
            // Before the clock synchronises, which releases the memory that this pass freed.
            self.device_mib = self.device_mib.max(device_mib(self.device));
            clock.lap(2)?;
            gradients.add(&store, texts.len() as f64 / train.batch as f64 / factor)?;
            clock.lap(3)?;
        }
        Ok(gradients)
    }

    fn times(&self, mut laps: Vec<Laps>) -> StepTimes {
        laps.sort_by_key(|laps| laps.step);
        let Laps { parts, step, products } = laps.get(laps.len() / 2).copied().unwrap_or_default();
        let ([forward, output, backward, gradients, optimizer], step_ms) = (parts.map(ms), ms(step));
        let Config { train, data, .. } = self.config;
        StepTimes {
            method: self.learner.description().into(),
            params: self.learner.body_params(),
            batch: train.batch,
            max_len: data.max_len,
            steps: laps.len(),
            threads: rayon::current_num_threads(),
            step_ms,
            tokens_per_second: (train.batch * data.max_len) as f64 / (step_ms / 1000.0),
            sum_of_parts_ms: forward + output + backward + gradients + optimizer,
            parts_ms: PartTimes { forward, output, backward, gradients, optimizer },
            products_ms: (products > Duration::ZERO).then_some(ms(products)),
            peak_mib: peak_mib(),
            device_mib: self.device_mib,
        }
    }
}

fn ms(time: Duration) -> f64 {
    1000.0 * time.as_secs_f64()
}
