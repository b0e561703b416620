//! [`run`]: the training loop, its evaluations and its output folder.

use std::path::{Path, PathBuf};
use std::time::Instant;

use kron_adapter::io::write_atomic;
use kron_candle::{AdamW, Adapter, IfExists};

use super::checkpoint;
use super::fingerprint::{check_equal, check_equal_values};
use super::folder::{CHECKPOINT, EVALUATIONS, OutputFolder, SETTINGS, STEPS};
use super::gradients::{Computed, Step, check_shares};
use super::head;
use super::learner::Learner;
use super::log::{Log, read_log};
use super::loss_scale::LossScale;
use super::page::run_page;
use super::progress::Progress;
use super::records::{Answers, Evaluation, Score, StepRecord};
use super::resources::cpu_seconds;
use super::schedule::learning_rate;
use super::stop::Stop;
use crate::config::{Config, Method};
use crate::data::{Dataset, shuffled_batches};
use crate::error::{Error, Result, file};
use crate::model::Weights;
use crate::ranks::World;

/// Result of a run.
pub struct Outcome {
    /// Trained model.
    pub learner: Learner,
    /// All steps, including those before a resumption.
    pub steps: Vec<StepRecord>,
    /// All evaluations on the validation and test sets.
    pub evaluations: Vec<Evaluation>,
    /// Final score on the validation set.
    pub validation: Option<Score>,
    /// Final score on the test set.
    pub test: Option<Score>,
    /// Examples of the test set that the trained model answers correctly.
    pub test_answers: Option<Answers>,
    /// `true` if the run was stopped before its end.
    pub stopped: bool,
}

impl Outcome {
    /// Returns the median seconds of a step.
    pub fn step_seconds(&self) -> f64 {
        let mut seconds: Vec<f64> = self.steps.iter().map(|step| step.seconds).collect();
        seconds.sort_by(f64::total_cmp);
        seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Returns the mean processor seconds of a step.
    pub fn step_cpu_seconds(&self) -> Option<f64> {
        let all: Option<Vec<f64>> = self.steps.iter().map(|step| step.cpu_seconds).collect();
        all.filter(|all| !all.is_empty()).map(|all| all.iter().sum::<f64>() / all.len() as f64)
    }

    /// Returns the highest GPU memory in use, in MiB.
    pub fn device_mib(&self) -> Option<u64> {
        self.steps.iter().filter_map(|step| step.device_mib).max()
    }
}

/// Trains a model; with an output folder also writes logs, checkpoints, adapter, head and report.
///
/// # Errors
/// Invalid settings, data or files, and a loss or gradient that is not finite.
pub fn run(
    config: &Config,
    weights: &Weights,
    data: &Dataset,
    output: Option<&OutputFolder>,
    stop: &Stop,
    progress: &Progress,
) -> Result<Outcome> {
    run_over(&World::alone(), config, weights, data, output, stop, progress)
}

/// Trains a model on several ranks, each of which calls this with the same inputs; the first one writes the files and
/// shows the progress.
///
/// A step's micro-batches are shared, consecutive ones to each rank, and their gradients are added in order: the result
/// has the same bits for any number of ranks on the CPU. Evaluations are shared, too.
///
/// # Errors
/// As [`run`] on any rank, inputs that differ between ranks, fewer micro-batches in a batch than ranks, and exchanges
/// that fail.
pub fn run_over(
    world: &World,
    config: &Config,
    weights: &Weights,
    data: &Dataset,
    output: Option<&OutputFolder>,
    stop: &Stop,
    progress: &Progress,
) -> Result<Outcome> {
    check_equal(world, config, data, weights)?;
    world.gather("settings", config.check().and_then(|()| check_shares(config, world.count())))?;
    // One process at a time writes into a folder.
    let _lock = world.on_first("output folder", || output.map(|output| output.open(config)).transpose())?;
    let learner = Learner::new(config, weights, data);
    let mut trainer =
        world.together("model", learner.and_then(|learner| Trainer::new(config, data, learner, world)))?;
    let start = trainer.start(output)?;
    let progress = if world.is_first() { progress } else { &Progress::Hidden };
    let stopped = trainer.train(start, stop, progress)?;
    let (mut validation, mut test, mut test_answers) = (None, None, None);
    if !stopped {
        validation = trainer.evaluate("validation")?.map(|(score, _)| score);
        (test, test_answers) = trainer.evaluate("test")?.unzip();
    }
    if let Some(output) = output {
        trainer.save()?;
        if !stopped {
            world.on_first("results", || trainer.write_results(&output.path))?;
        }
    }
    let Trainer { learner, steps, evaluations, .. } = trainer;
    Ok(Outcome { learner, steps, evaluations, validation, test, test_answers, stopped })
}

/// Trains in memory, starting from an adapter that was trained before.
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
    let (learner, world) = (Learner::continuing(config, weights, data, before)?, World::alone());
    let mut trainer = Trainer::new(config, data, learner, &world)?;
    trainer.train(0, stop, progress)?;
    Ok(trainer.learner)
}

/// Files written during a run.
struct Files {
    checkpoint: PathBuf,
    steps: Log,
    evaluations: Log,
}

struct Trainer<'a> {
    config: &'a Config,
    data: &'a Dataset,
    world: &'a World,
    learner: Learner,
    optimizer: AdamW,
    scale: LossScale,
    files: Option<Files>,
    steps: Vec<StepRecord>,
    evaluations: Vec<Evaluation>,
}

impl<'a> Trainer<'a> {
    fn new(config: &'a Config, data: &'a Dataset, learner: Learner, world: &'a World) -> Result<Self> {
        let optimizer = learner.optimizer(&config.train)?;
        let scale = LossScale::new(config.compute.precision);
        let (steps, evaluations) = (Vec::new(), Vec::new());
        Ok(Self { config, data, world, learner, optimizer, scale, files: None, steps, evaluations })
    }

    /// Starts the files of a run, or resumes from them; returns the number of steps taken.
    fn start(&mut self, output: Option<&OutputFolder>) -> Result<u64> {
        let Some(OutputFolder { path: folder, .. }) = output else { return Ok(0) };
        let path = folder.join(CHECKPOINT);
        // A run that ended before its first checkpoint starts again.
        let exists = path.symlink_metadata().is_ok();
        let read = || exists.then(|| checkpoint::bytes(&path)).transpose();
        let own = self.world.on_first("checkpoint", read)?;
        let restored = match self.world.gather("checkpoint's existence", Ok(own.is_some()))?[..] {
            [true, ..] => {
                // The other ranks may not see the folder.
                let bytes = self.world.broadcast("checkpoint's bytes", own.unwrap_or_default())?;
                self.restore(&path, bytes)
            }
            _ => Ok(0),
        };
        let step = self.world.together("checkpoint's state", restored)?;
        let started = if self.world.is_first() { self.start_files(folder, step) } else { Ok(()) };
        self.world.together("files", started)?;
        Ok(step)
    }

    fn restore(&mut self, path: &Path, bytes: Vec<u8>) -> Result<u64> {
        let total = self.total();
        let Self { config, learner, optimizer, scale, .. } = self;
        let step = checkpoint::restore(path, bytes, config, learner.trained(), optimizer, scale)?;
        match step > total {
            true => Err(file(
                path,
                format!("is from step {step}, but the run has {total}: its data have changed"),
            )),
            false => Ok(step),
        }
    }

    /// Opens the logs of a run, with the rows up to a step.
    fn start_files(&mut self, folder: &Path, step: u64) -> Result<()> {
        let [checkpoint, steps, evaluations] = [CHECKPOINT, STEPS, EVALUATIONS].map(|name| folder.join(name));
        if step > 0 {
            self.steps = read_log(&steps)?;
            self.steps.retain(|row| row.step <= step);
            self.evaluations = read_log(&evaluations)?;
            // The checkpoint may have been written before this step's evaluation, which is repeated.
            self.evaluations.retain(|row| row.step < step);
        }
        let (settings, text) = (folder.join(SETTINGS), self.config.text()?);
        // The settings of a resumed run are those that it started with, and may have the user's comments.
        if settings.symlink_metadata().is_err() {
            write_atomic(&settings, IfExists::Refuse, |out| out.write_all(text.as_bytes()))?;
        }
        let steps = Log::start(&steps, &self.steps)?;
        let evaluations = Log::start(&evaluations, &self.evaluations)?;
        self.files = Some(Files { checkpoint, steps, evaluations });
        Ok(())
    }

    /// Returns the steps of an epoch.
    fn per_epoch(&self) -> u64 {
        self.data.train.len().div_ceil(self.config.train.batch) as u64
    }

    /// Returns the steps of the run.
    fn total(&self) -> u64 {
        match self.config.adapter.method {
            Method::None => 0,
            _ => self.per_epoch() * self.config.train.epochs,
        }
    }

    /// Takes all steps from `start` on; returns `true` if stopped before the end.
    fn train(&mut self, start: u64, stop: &Stop, progress: &Progress) -> Result<bool> {
        let train = &self.config.train;
        let (per_epoch, total) = (self.per_epoch(), self.total());
        let mut batches = Vec::new();
        let bar = progress.bar(total, start);
        bar.say(&format!(
            "{}: {} parameters, {total} steps",
            self.learner.description(),
            self.learner.body_params()
        ));
        if start > 0 && start < total && start.is_multiple_of(per_epoch) {
            self.evaluate("validation")?;
        }
        for step in start..total {
            let within = (step % per_epoch) as usize;
            if within == 0 || step == start {
                batches = shuffled_batches(self.data.train.len(), train.batch, train.seed, step / per_epoch);
            }
            let record = self.step(step, total, per_epoch, &batches[within])?;
            bar.step(&record);
            self.steps.push(record);
            let logged = self.files.as_mut().map_or(Ok(()), |files| files.steps.add(&record));
            // One rank may get the signal before another.
            let told = self.world.gather("end of a step", logged.map(|()| stop.is_requested()))?;
            let stopping = told.contains(&true);
            if stopping || (train.save_every > 0 && (step + 1) % train.save_every == 0) {
                self.save()?;
            }
            if stopping {
                return Ok(true);
            }
            if within + 1 == batches.len() && step + 1 < total {
                self.evaluate("validation")?;
            }
        }
        Ok(false)
    }

    fn step(&mut self, step: u64, total: u64, per_epoch: u64, batch: &[usize]) -> Result<StepRecord> {
        let (train, begin, cpu) = (&self.config.train, Instant::now(), cpu_seconds());
        let Computed { mut gradients, loss, tokens, device_mib } = self.compute(step, batch)?;
        let mut gradient = gradients.norm()?;
        // Float16 overflowed: compute the same gradients again with a smaller scale.
        while !gradient.is_finite() && self.scale.shrink() {
            gradients = self.compute(step, batch)?.gradients;
            gradient = gradients.norm()?;
        }
        if !gradient.is_finite() {
            return self.world.fail(Error::Exploded { step: step + 1, gradient });
        }
        if train.clip > 0.0 {
            gradients.clip(train.clip)?;
        }
        self.scale.passed();
        let lr = learning_rate(train, step, total);
        self.optimizer.step(&gradients, lr)?;
        let epoch = (step + 1) as f64 / per_epoch as f64;
        let seconds = begin.elapsed().as_secs_f64();
        let cpu_seconds = cpu_seconds().zip(cpu).map(|(now, then)| now - then);
        Ok(StepRecord { step: step + 1, epoch, lr, loss, gradient, tokens, seconds, cpu_seconds, device_mib })
    }

    /// Computes the gradients of a batch over all ranks.
    fn compute(&self, number: u64, batch: &[usize]) -> Result<Computed> {
        let Self { config: Config { train, .. }, learner, data, .. } = self;
        let factor = self.scale.factor();
        let step = Step { learner, examples: &data.train, train, number, factor };
        step.compute(batch, &self.optimizer.vars(), self.world)
    }

    /// Evaluates the validation or test set, if there is one.
    fn evaluate(&mut self, split: &str) -> Result<Option<(Score, Answers)>> {
        let examples = if split == "test" { &self.data.test } else { &self.data.validation };
        let Some(examples) = examples else { return Ok(None) };
        let batch = 2 * self.config.train.batch;
        let (score, answers) = self.learner.answers_over(self.world, examples, batch)?;
        let evaluation = Evaluation::new(self.optimizer.state().0, split, score);
        let added = self.files.as_mut().map_or(Ok(()), |files| files.evaluations.add(&evaluation));
        self.world.together("row of an evaluation", added)?;
        self.evaluations.push(evaluation);
        Ok(Some((score, answers)))
    }

    /// Writes a checkpoint, if the run has files.
    fn save(&self) -> Result<()> {
        let Self { config, learner, optimizer, scale, .. } = self;
        let write = |files: &Files| {
            checkpoint::write(&files.checkpoint, config, learner.trained(), optimizer, *scale)
        };
        let written = self.files.as_ref().map_or(Ok(()), write);
        check_equal_values(self.world, learner.trained(), written)
    }

    /// Writes the adapter with its head, or a head alone, and the report.
    fn write_results(&self, folder: &Path) -> Result<()> {
        let (head, labels) = (self.learner.head(), &self.data.labels);
        match (self.learner.adapters(), head) {
            (Some(adapters), head) => {
                let mut adapter = of_model(adapters.to_adapter()?, &self.config.model)?;
                if let Some(head) = head {
                    adapter = head::put_into(adapter, head, labels)?;
                }
                adapter.write(folder.join("adapter.safetensors"), IfExists::Replace)?;
            }
            (None, Some(head)) => head::write(&folder.join("head.safetensors"), head, labels)?,
            (None, None) => {}
        }
        let html = run_page(self.config, self.learner.description(), &self.steps, &self.evaluations)?;
        let path = folder.join("report.html");
        Ok(write_atomic(&path, IfExists::Replace, |out| out.write_all(html.as_bytes()))?)
    }
}

/// Returns the adapter with the model's folder in its metadata, under PEFT's key.
fn of_model(adapter: Adapter, model: &Path) -> Result<Adapter> {
    let mut metadata = adapter.metadata().clone();
    let folder = model.to_str().filter(|_| model.is_dir());
    metadata.extend(folder.map(|folder| ("base_model_name_or_path".to_owned(), folder.to_owned())));
    Ok(adapter.with_metadata(metadata)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::Precision;
    use crate::data::Tokenizer;

    /// Starts the same step from a scale that float16 cannot represent.
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
            let world = World::alone();
            let mut trainer = Trainer::new(&config, &data, learner, &world).expect("a trainer");
            trainer.scale = scale;
            (trainer.step(0, 10, 10, &batch).expect("a step"), trainer.scale.factor())
        };
        let (usual, factor) = step(LossScale::new(Precision::F16));
        let (shrunk, smaller) = step(LossScale::parse("1e30 5").expect("a scale"));
        assert_eq!(shrunk.loss, usual.loss);
        assert!(
            (shrunk.gradient / usual.gradient - 1.0).abs() < 0.01,
            "{} and {}",
            shrunk.gradient,
            usual.gradient
        );
        assert!((1.0..1e30).contains(&smaller) && smaller != factor, "{smaller}");
    }
}
