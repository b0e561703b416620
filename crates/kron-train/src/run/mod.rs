//! One run: data and weights in, a trained model out. Every step is a function
//! of the settings and the step's number, so that a run can go on from any
//! checkpoint as if it had never stopped.

mod checkpoint;
mod log;
mod scale;
mod schedule;
mod stop;

use std::path::{Path, PathBuf};
use std::time::Instant;

use kron_adapter::io::write_atomic;
use kron_candle::{AdamW, AdamWConfig, Adapter, DropoutKey, Gradients, IfExists};

use crate::config::{Config, Method};
use crate::data::{Dataset, shuffled_batches};
use crate::error::{Error, Result, file, invalid};
use crate::learner::{Learner, Score};
use crate::model::Weights;
use crate::process::{cpu_seconds, device_mib};
use crate::progress::Progress;
pub use log::{Log, Look, Row, read as read_log};
use scale::LossScale;
pub use schedule::rate;
pub use stop::Stop;

/// Where a run writes, and whether it goes on with what lies there.
#[derive(Clone, Debug)]
pub struct Place {
    /// The folder.
    pub folder: PathBuf,
    /// Go on from the folder's checkpoint.
    pub resume: bool,
}

/// What came out of a run.
pub struct Outcome {
    /// The trained model.
    pub learner: Learner,
    /// One row a step, those before a resumption included.
    pub rows: Vec<Row>,
    /// One row a look at a set.
    pub looks: Vec<Look>,
    /// On the validation set, at the end.
    pub validation: Option<Score>,
    /// On the test set, at the end.
    pub test: Option<Score>,
    /// Whether it was asked to stop before the end.
    pub stopped: bool,
}

impl Outcome {
    /// Median seconds of a step.
    pub fn step_seconds(&self) -> f64 {
        let mut seconds: Vec<f64> = self.rows.iter().map(|row| row.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Mean processor seconds of a step.
    pub fn step_cpu_seconds(&self) -> Option<f64> {
        let all: Option<Vec<f64>> = self.rows.iter().map(|row| row.cpu_seconds).collect();
        all.filter(|all| !all.is_empty()).map(|all| crate::stats::mean(&all))
    }

    /// Most MiB in use on the GPU.
    pub fn device_mib(&self) -> Option<u64> {
        self.rows.iter().filter_map(|row| row.device_mib).max()
    }
}

/// Trains, and writes what `place` says.
///
/// # Errors
/// Settings, data or files that are refused, and a loss that is no number.
pub fn run(
    config: &Config,
    weights: &Weights,
    data: &Dataset,
    place: Option<&Place>,
    stop: &Stop,
    progress: &Progress,
) -> Result<Outcome> {
    config.check()?;
    let mut state = State::new(config, data, Learner::new(config, weights, data)?)?;
    let start = state.open(place)?;
    let stopped = state.steps(start, stop, progress)?;
    let (mut validation, mut test) = (None, None);
    if !stopped {
        validation = state.look("validation")?;
        test = state.look("test")?;
    }
    if let Some(place) = place {
        state.save()?;
        if !stopped {
            state.results(&place.folder)?;
        }
    }
    let State { learner, rows, looks, .. } = state;
    Ok(Outcome { learner, rows, looks, validation, test, stopped })
}

/// Trains without a file, from an adapter that was trained before.
///
/// # Errors
/// As [`run`].
pub fn run_from(
    config: &Config,
    weights: &Weights,
    data: &Dataset,
    before: Option<Adapter>,
    stop: &Stop,
    progress: &Progress,
) -> Result<Learner> {
    config.check()?;
    let mut state = State::new(config, data, Learner::continuing(config, weights, data, before)?)?;
    state.steps(0, stop, progress)?;
    Ok(state.learner)
}

/// The files that grow during a run.
struct Files {
    checkpoint: PathBuf,
    steps: Log,
    looks: Log,
}

struct State<'a> {
    config: &'a Config,
    data: &'a Dataset,
    learner: Learner,
    optimizer: AdamW,
    scale: LossScale,
    files: Option<Files>,
    rows: Vec<Row>,
    looks: Vec<Look>,
}

impl<'a> State<'a> {
    fn new(config: &'a Config, data: &'a Dataset, learner: Learner) -> Result<Self> {
        let groups = learner.trained().iter().map(|(_, group)| group.clone()).collect();
        let [beta1, beta2] = config.train.betas;
        let optimizer = AdamW::new(groups, AdamWConfig { beta1, beta2, eps: config.train.eps })?;
        let scale = LossScale::new(config.compute.precision);
        Ok(Self { config, data, learner, optimizer, scale, files: None, rows: Vec::new(), looks: Vec::new() })
    }

    /// Makes the folder or goes on with it; returns the number of steps taken.
    fn open(&mut self, place: Option<&Place>) -> Result<u64> {
        let Some(Place { folder, resume }) = place else { return Ok(0) };
        std::fs::create_dir_all(folder).map_err(|e| file(folder, e))?;
        let [checkpoint, steps, looks] =
            ["checkpoint.safetensors", "log.csv", "evaluations.csv"].map(|name| folder.join(name));
        let mut step = 0;
        match (checkpoint.exists(), resume) {
            (true, false) => {
                return Err(invalid(format!(
                    "{} holds a run: pass --resume to go on with it, or another folder",
                    folder.display()
                )));
            }
            (true, true) => {
                let Self { config, learner, optimizer, scale, .. } = self;
                step = checkpoint::read(&checkpoint, config, learner.trained(), optimizer, scale)?;
                self.rows = read_log(&steps)?;
                self.rows.retain(|row| row.step <= step);
                self.looks = read_log(&looks)?;
                // A look at this very step is taken again: the checkpoint may have come before it.
                self.looks.retain(|look| look.step < step);
            }
            (false, _) => {}
        }
        let text = self.config.text()?;
        write_atomic(&folder.join("config.toml"), IfExists::Replace, |out| out.write_all(text.as_bytes()))?;
        let (steps, looks) = (Log::start(&steps, &self.rows)?, Log::start(&looks, &self.looks)?);
        self.files = Some(Files { checkpoint, steps, looks });
        Ok(step)
    }

    /// Whether it was stopped before the end.
    fn steps(&mut self, start: u64, stop: &Stop, progress: &Progress) -> Result<bool> {
        let train = &self.config.train;
        let per_epoch = self.data.train.len().div_ceil(train.batch) as u64;
        let total = match self.config.adapter.method {
            Method::None => 0,
            _ => per_epoch * train.epochs,
        };
        let mut batches = Vec::new();
        let bar = progress.bar(total, start);
        if start > 0 && start < total && start.is_multiple_of(per_epoch) {
            self.look("validation")?;
        }
        for step in start..total {
            let within = (step % per_epoch) as usize;
            if within == 0 || step == start {
                batches = shuffled_batches(self.data.train.len(), train.batch, train.seed, step / per_epoch);
            }
            let row = self.step(step, total, per_epoch, &batches[within])?;
            bar.step(&row);
            self.rows.push(row);
            if let Some(files) = &mut self.files {
                files.steps.add(&row)?;
            }
            let stopping = stop.is_asked();
            if stopping || (train.save_every > 0 && (step + 1) % train.save_every == 0) {
                self.save()?;
            }
            if stopping {
                return Ok(true);
            }
            if within + 1 == batches.len() && step + 1 < total {
                self.look("validation")?;
            }
        }
        Ok(false)
    }

    fn step(&mut self, step: u64, total: u64, per_epoch: u64, batch: &[usize]) -> Result<Row> {
        let (train, begin, cpu) = (&self.config.train, Instant::now(), cpu_seconds());
        let (mut gradients, loss, tokens, device_mib) = self.gradients(step, batch)?;
        let mut gradient = gradients.norm()?;
        // An overflow of float16: the same gradients again, less magnified.
        while !gradient.is_finite() && self.scale.shrink() {
            (gradients, ..) = self.gradients(step, batch)?;
            gradient = gradients.norm()?;
        }
        if !gradient.is_finite() {
            return Err(Error::Exploded { step: step + 1, gradient });
        }
        if train.clip > 0.0 {
            gradients.clip(train.clip)?;
        }
        self.scale.passed();
        let rate = rate(train, step, total);
        self.optimizer.step(&gradients, rate)?;
        let epoch = (step + 1) as f64 / per_epoch as f64;
        let seconds = begin.elapsed().as_secs_f64();
        let cpu_seconds = cpu_seconds().zip(cpu).map(|(now, then)| now - then);
        Ok(Row { step: step + 1, epoch, rate, loss, gradient, tokens, seconds, cpu_seconds, device_mib })
    }

    /// Of a batch's mean loss; the loss, the tokens, and the most MiB in use on the GPU after a backward pass.
    fn gradients(&self, step: u64, batch: &[usize]) -> Result<(Gradients, f32, usize, Option<u64>)> {
        let (train, factor) = (&self.config.train, self.scale.factor());
        let micro = if train.micro_batch == 0 { batch.len() } else { train.micro_batch };
        let mut gradients = Gradients::new(&self.optimizer.vars());
        let (mut loss, mut tokens, mut most) = (0.0, 0, None);
        let trained = self.learner.trained().first();
        for (part, which) in batch.chunks(micro).enumerate() {
            // Every part of every step has a mask of its own.
            let offset = step * train.batch as u64 + part as u64;
            let key = DropoutKey { seed: train.seed, offset };
            let (part_loss, part_tokens) = self.learner.loss(&self.data.train, which, Some(key))?;
            let share = which.len() as f64 / batch.len() as f64;
            loss += share as f32 * part_loss.to_scalar::<f32>()?;
            tokens += part_tokens;
            if !loss.is_finite() {
                return Err(Error::Diverged { step: step + 1, loss });
            }
            let scaled = if factor == 1.0 { part_loss } else { (part_loss * factor)? };
            gradients.add(&scaled.backward()?, share / factor)?;
            // Before the host waits for a GPU again, which then gives back what this pass has freed.
            most = most.max(trained.and_then(|(_, group)| device_mib(group.var().device())));
        }
        Ok((gradients, loss, tokens, most))
    }

    fn look(&mut self, split: &str) -> Result<Option<Score>> {
        let examples = if split == "test" { &self.data.test } else { &self.data.validation };
        let Some(examples) = examples else { return Ok(None) };
        let score = self.learner.score(examples, 2 * self.config.train.batch)?;
        let look = Look::new(self.optimizer.state().0, split, score);
        if let Some(files) = &mut self.files {
            files.looks.add(&look)?;
        }
        self.looks.push(look);
        Ok(Some(score))
    }

    fn save(&self) -> Result<()> {
        let Some(files) = &self.files else { return Ok(()) };
        let Self { config, learner, optimizer, scale, .. } = self;
        checkpoint::write(&files.checkpoint, config, learner.trained(), optimizer, *scale)
    }

    /// The adapter, the head and the report.
    fn results(&self, folder: &Path) -> Result<()> {
        if let Some(adapters) = self.learner.adapters() {
            adapters.save(folder.join("adapter.safetensors"), IfExists::Replace)?;
        }
        if let Some(head) = self.learner.head() {
            let path = folder.join("head.safetensors");
            let mut tensors = vec![("head.weight", head.weight().clone())];
            tensors.extend(head.bias().map(|bias| ("head.bias", bias.clone())));
            let labels = [("labels".to_owned(), self.data.labels.join("\n"))].into();
            let bytes = safetensors::serialize(tensors, Some(labels)).map_err(|e| file(&path, e))?;
            write_atomic(&path, IfExists::Replace, |out| out.write_all(&bytes))?;
        }
        let html = crate::report::run(self.config, self.learner.description(), &self.rows, &self.looks)?;
        let path = folder.join("report.html");
        Ok(write_atomic(&path, IfExists::Replace, |out| out.write_all(html.as_bytes()))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Precision;
    use crate::text::Tokenizer;

    /// The same step from a scale that float16 cannot hold at all.
    #[test]
    fn an_overflow_is_tried_again_with_less() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let mut config = Config { model: data.join("stories260K.bin"), ..Config::default() };
        config.compute.precision = Precision::F16;
        config.data.train = data.join("snips.train.jsonl");
        config.data.limit_train = 8;
        (config.adapter.a_in, config.adapter.a_out, config.adapter.rank) = (2, 4, 4);
        let files = crate::model::Files::find(&config.model).expect("a model");
        let weights = Weights::read_for(&files, config.compute).expect("weights");
        let tokenizer = Tokenizer::read(&files.tokenizer).expect("a tokenizer");
        let data = Dataset::read(&config, &tokenizer).expect("data");
        let batch: Vec<usize> = (0..8).collect();
        let step = |scale: LossScale| {
            let learner = Learner::new(&config, &weights, &data).expect("a learner");
            let mut state = State::new(&config, &data, learner).expect("a state");
            state.scale = scale;
            (state.step(0, 10, 10, &batch).expect("a step"), state.scale.factor())
        };
        let (usual, factor) = step(LossScale::new(Precision::F16));
        let (row, smaller) = step(LossScale::parse("1e30 5").expect("a scale"));
        assert_eq!(row.loss, usual.loss);
        assert!(
            (row.gradient / usual.gradient - 1.0).abs() < 0.01,
            "{} and {}",
            row.gradient,
            usual.gradient
        );
        assert!((1.0..1e30).contains(&smaller) && smaller != factor, "{smaller}");
    }
}
