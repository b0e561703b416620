//! Samples, rounds and their interleaving.
//!
//! A sample is a sweep as a network makes it: forward over some sets of the
//! ring one after the other, then backward over the same. The ring moves on
//! with every sample, so that a set has left the cache when it comes round.

use std::time::Instant;

use kron_core::{Element, Result};

use crate::data::Set;
use crate::engines::{Engine, Kind};

/// Seconds that a sweep takes: long enough that the clock and the interruptions
/// of the system do not show, shorter when the time is short.
const SWEEP: std::ops::RangeInclusive<f64> = 0.001..=0.02;

/// Rounds that every engine gets whose sweep is short.
const ROUNDS: usize = 7;

/// The most rounds of an engine.
const MOST_ROUNDS: usize = 25;

/// Sets of one cell, and where the next sweep starts.
pub struct Ring<E: Element> {
    /// The sets; at least two.
    pub sets: Vec<Set<E>>,
    next: usize,
}

impl<E: Element> Ring<E> {
    /// A ring of at least one set.
    pub fn new(sets: Vec<Set<E>>) -> Self {
        Self { sets, next: 0 }
    }

    /// Sets of a sweep of an engine that takes `seconds` for one and has `share` seconds for all its rounds.
    pub fn sweep(&self, seconds: f64, share: f64) -> usize {
        let sweep = (share / ROUNDS as f64).clamp(*SWEEP.start(), *SWEEP.end());
        ((sweep / seconds) as usize).clamp(1, self.sets.len())
    }

    /// Seconds per set of forward, and of forward and backward together.
    ///
    /// # Errors
    /// What the engine refuses.
    pub fn sample(&mut self, engine: &mut dyn Engine<E>, sweep: usize, backward: bool) -> Result<(f64, f64)> {
        let len = self.sets.len();
        let first = self.next;
        self.next = (first + sweep) % len;
        let start = Instant::now();
        for i in first..first + sweep {
            engine.forward(&mut self.sets[i % len])?;
        }
        let forward = start.elapsed();
        if backward {
            for i in first..first + sweep {
                engine.backward(&mut self.sets[i % len])?;
            }
        }
        let both = start.elapsed();
        Ok((forward.as_secs_f64() / sweep as f64, both.as_secs_f64() / sweep as f64))
    }
}

/// How often an engine is sampled: as often as its share of the cell's `seconds`
/// allows, at least [`ROUNDS`] times when a sample is short, 3 when it is not, and once
/// when it is one of the slow products with a whole weight.
pub fn rounds(kind: Kind, sample: f64, share: f64) -> usize {
    let least = match (sample, kind.is_dense()) {
        (s, _) if s < 0.05 => ROUNDS,
        (s, true) if s > 0.2 => 1,
        _ => 3,
    };
    ((share / sample) as usize).clamp(least, MOST_ROUNDS)
}

/// Whether an engine with `own` rounds takes part in round `round` of `all`: its rounds are spread evenly.
pub const fn takes_part(own: usize, round: usize, all: usize) -> bool {
    (round + 1) * own / all != round * own / all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_spread_and_complete() {
        for (own, all) in [(3, 25), (25, 25), (1, 7), (7, 11)] {
            let taken: Vec<usize> = (0..all).filter(|&r| takes_part(own, r, all)).collect();
            assert_eq!(taken.len(), own);
            assert!(taken.windows(2).all(|w| w[1] - w[0] >= all / own));
        }
    }

    #[test]
    fn slow_engines_get_fewer_rounds_but_never_none() {
        assert_eq!(rounds(Kind::KronFused, 0.01, 0.0), 7);
        assert_eq!(rounds(Kind::KronFused, 0.5, 0.0), 3);
        assert_eq!(rounds(Kind::KronDense, 4.0, 1.0), 1);
        assert_eq!(rounds(Kind::LoraGemm, 0.01, 0.15), 15);
        assert_eq!(rounds(Kind::LoraGemm, 0.001, 9.0), MOST_ROUNDS);
    }
}
