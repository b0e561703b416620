//! Which products are the fastest for a layer: measured, so that the rival is at its best.

use std::time::Instant;

use kron_core::{Element, Result};

use crate::data::Set;
use crate::engines::{Choice, Engine};

/// Rows of a trial: a schedule works by blocks, so more rows only repeat it.
pub const TRIAL_ROWS: usize = 256;

/// Rows of a trial of an engine that multiplies by a whole weight.
pub const DENSE_TRIAL_ROWS: usize = 32;

/// Runs of a candidate, the best of which counts; slow ones get one.
const RUNS: usize = 4;

/// A run longer than this is not repeated, in seconds.
const SLOW: f64 = 0.02;

/// The choice that is fastest over both passes, with its seconds.
///
/// # Errors
/// What the engine refuses.
pub fn fastest<E: Element>(
    choices: &[Choice],
    make: impl Fn(Choice) -> Box<dyn Engine<E>>,
    trial: &mut Set<E>,
) -> Result<(Choice, f64)> {
    let times = times(choices, make, trial)?;
    Ok(least(choices, times.iter().map(|(f, b)| f + b)))
}

/// The fastest choice of forward, and that of backward.
///
/// # Errors
/// What the engine refuses.
pub fn fastest_by_pass<E: Element>(
    choices: &[Choice],
    make: impl Fn(Choice) -> Box<dyn Engine<E>>,
    trial: &mut Set<E>,
) -> Result<(Choice, Choice)> {
    let times = times(choices, make, trial)?;
    let forward = least(choices, times.iter().map(|t| t.0)).0;
    Ok((forward, least(choices, times.iter().map(|t| t.1)).0))
}

fn times<E: Element>(
    choices: &[Choice],
    make: impl Fn(Choice) -> Box<dyn Engine<E>>,
    trial: &mut Set<E>,
) -> Result<Vec<(f64, f64)>> {
    choices
        .iter()
        .map(|&choice| {
            let mut engine = make(choice);
            let mut best = (f64::INFINITY, f64::INFINITY);
            for _ in 0..RUNS {
                let start = Instant::now();
                engine.forward(trial)?;
                let forward = start.elapsed().as_secs_f64();
                engine.backward(trial)?;
                let both = start.elapsed().as_secs_f64();
                best = (best.0.min(forward), best.1.min(both - forward));
                if both > SLOW {
                    break;
                }
            }
            Ok(best)
        })
        .collect()
}

fn least(choices: &[Choice], seconds: impl Iterator<Item = f64>) -> (Choice, f64) {
    let pairs = choices.iter().copied().zip(seconds);
    // Every engine with a choice has at least one.
    pairs.min_by(|a, b| a.1.total_cmp(&b.1)).expect("a choice")
}
