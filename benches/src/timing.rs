//! Samples on the CPU, the number of rounds, and their interleaving.
//!
//! A sample is a sweep as a network makes it: forward over some sets of the
//! ring one after the other, then backward over the same sets. Each sample starts
//! where the one before ended, so that a set has left the cache when it is used again.

use std::time::Instant;

use kron_core::{Element, Result};

use crate::data::Set;
use crate::engine::Engine;
use crate::engines::Kind;

/// Seconds of both passes above which an engine with a whole weight counts as slow.
pub const SLOW: f64 = 0.2;

/// Seconds of a sweep: long enough that the clock's resolution and the system's
/// interruptions do not matter, shorter when little time is left.
const SWEEP: std::ops::RangeInclusive<f64> = 0.001..=0.02;

/// Fewest rounds of an engine whose sweep is short.
const ROUNDS: usize = 7;

/// Most rounds of an engine.
const MAX_ROUNDS: usize = 25;

/// The sets of one cell, and the start of the next sweep.
pub struct Ring<E: Element> {
    /// At least two.
    sets: Vec<Set<E>>,
    next: usize,
}

impl<E: Element> Ring<E> {
    /// Makes a ring of at least one set.
    pub fn new(sets: Vec<Set<E>>) -> Self {
        Self { sets, next: 0 }
    }

    /// Returns the number of sets in a sweep, for an engine that takes `seconds` for one set and has `share`
    /// seconds for all its rounds.
    pub fn sweep(&self, seconds: f64, share: f64) -> usize {
        let sweep = (share / ROUNDS as f64).clamp(*SWEEP.start(), *SWEEP.end());
        ((sweep / seconds) as usize).clamp(1, self.sets.len())
    }

    /// Takes a sample: the seconds per set of forward, and of forward and backward together.
    ///
    /// # Errors
    /// Fails if the engine does.
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

/// Returns the number of samples of an engine: as many as its share of the cell's seconds
/// allows, but at least [`ROUNDS`] if a sample is short, 1 if the engine multiplies slowly by a
/// whole weight, and 3 otherwise.
pub fn rounds(kind: Kind, sample: f64, share: f64) -> usize {
    let least = match (sample, kind.is_dense()) {
        (s, _) if s < 0.05 => ROUNDS,
        (s, true) if s > SLOW => 1,
        _ => 3,
    };
    ((share / sample) as usize).clamp(least, MAX_ROUNDS)
}

/// Returns true if an engine with `own` rounds is sampled in round `round` of `all`: its rounds are spread
/// evenly.
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
        assert_eq!(rounds(Kind::LoraGemm, 0.001, 9.0), MAX_ROUNDS);
    }
}
