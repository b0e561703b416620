//! Measures the products that an engine can use and keeps the fastest, so that every rival is at its best.

use std::time::Instant;

use kron_core::{Element, Result};

use crate::data::Set;
use crate::engine::Engine;

/// Rows of a trial: the work is cut into blocks of rows, so more rows only repeat it.
pub const TRIAL_ROWS: usize = 256;

/// Rows of a trial of an engine that multiplies by a whole weight.
pub const DENSE_TRIAL_ROWS: usize = 32;

/// Runs of each choice, of which the fastest counts; slow choices get one.
const RUNS: usize = 4;

/// Seconds above which a run is not repeated.
const SLOW: f64 = 0.02;

/// Returns the choice that is fastest over both passes.
///
/// # Errors
/// Fails if an engine does.
pub fn fastest<C: Copy, E: Element>(
    choices: &[C],
    make: impl Fn(C) -> Box<dyn Engine<E>>,
    trial: &mut Set<E>,
) -> Result<C> {
    let times = times(choices, make, trial)?;
    Ok(least(choices, times.iter().map(|(forward, backward)| forward + backward)))
}

/// Returns the choice that is fastest forward, and the one that is fastest backward.
///
/// # Errors
/// Fails if an engine does.
pub fn fastest_by_pass<C: Copy, E: Element>(
    choices: &[C],
    make: impl Fn(C) -> Box<dyn Engine<E>>,
    trial: &mut Set<E>,
) -> Result<(C, C)> {
    let times = times(choices, make, trial)?;
    Ok((least(choices, times.iter().map(|t| t.0)), least(choices, times.iter().map(|t| t.1))))
}

/// Measures the seconds of forward and of backward for each choice.
fn times<C: Copy, E: Element>(
    choices: &[C],
    make: impl Fn(C) -> Box<dyn Engine<E>>,
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

fn least<C: Copy>(choices: &[C], seconds: impl Iterator<Item = f64>) -> C {
    let pairs = choices.iter().zip(seconds);
    // Every engine with a choice has at least one.
    *pairs.min_by(|a, b| a.1.total_cmp(&b.1)).expect("a choice").0
}
