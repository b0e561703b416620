//! Dropout on the adapter's input. The mask is recomputed from a key and never
//! stored; it is the same on every backend.
//!
//! Element (n, k) of X takes 16 bits of Philox4x32-10 (Salmon et al., SC 2011) at
//! the counter (n·⌈d_in/8⌉ + ⌊k/8⌋, offset) under the key `seed`. The element is
//! kept if these bits, as an integer in 0…65535, are at least p·65536.

use crate::{Error, Result};

const ROUNDS: u32 = 10;
const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Random values of a Philox block: eight of 16 bits.
pub const PER_BLOCK: usize = 8;

/// Computes Philox4x32-10: 128 random bits from a counter and a key.
///
/// ```
/// // The first known answer of Random123.
/// assert_eq!(kron_core::philox([0; 4], [0; 2])[0], 0x6627_e8d5);
/// ```
#[inline(always)]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let p0 = u64::from(M0) * u64::from(c0);
        let p1 = u64::from(M1) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(W0);
        k1 = k1.wrapping_add(W1);
    }
    [c0, c1, c2, c3]
}

/// Probability with which an element of X is dropped.
///
/// A call applies dropout only if it brings a [`DropoutKey`].
///
/// ```
/// use kron_core::{Dropout, DropoutKey};
///
/// let dropout = Dropout::new(0.25)?;
/// assert_eq!(dropout.probability(), 0.25);
/// assert_eq!(dropout.keep_scale(), 1.0 / 0.75);
///
/// // The same key selects the same elements in forward and backward, on every backend.
/// let key = DropoutKey { seed: 7, offset: 0 };
/// let kept = (0..1000).filter(|&col| dropout.keeps(key, 1000, 3, col)).count();
/// assert!((700..800).contains(&kept));
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    threshold: u32,
}

impl Dropout {
    /// Drops nothing.
    pub const NONE: Dropout = Dropout { threshold: 0 };

    /// Returns dropout with probability p, rounded to the nearest multiple of 2⁻¹⁶.
    ///
    /// # Errors
    /// Fails if p is outside 0 ≤ p < 1 or rounds to 1.
    pub fn new(p: f32) -> Result<Self> {
        let threshold = (f64::from(p) * 65536.0).round();
        if !(0.0..65536.0).contains(&threshold) || !(0.0..1.0).contains(&p) {
            return Err(Error::Value(format!("dropout is {p}, but a dropout is at least 0 and below 1")));
        }
        Ok(Self { threshold: threshold as u32 })
    }

    /// Returns the rounded probability.
    pub fn probability(self) -> f32 {
        self.threshold as f32 / 65536.0
    }

    /// Returns 1 / (1 − p), the factor of kept elements, which preserves the mean.
    pub fn keep_scale(self) -> f32 {
        (65536.0 / (65536.0 - f64::from(self.threshold))) as f32
    }

    /// Returns p·65536: elements whose 16 random bits are below it are dropped.
    pub const fn threshold(self) -> u32 {
        self.threshold
    }

    /// Returns true if element `col` of row `row` of an n × d_in input is kept.
    pub fn keeps(self, key: DropoutKey, d_in: usize, row: usize, col: usize) -> bool {
        let block = row as u64 * d_in.div_ceil(PER_BLOCK) as u64 + (col / PER_BLOCK) as u64;
        let word = philox(key.counter(block), key.key())[col % PER_BLOCK / 2];
        let bits = if col.is_multiple_of(2) { word & 0xffff } else { word >> 16 };
        bits >= self.threshold
    }
}

/// Selects one mask: the same key gives the same mask in forward and backward.
///
/// ```
/// use kron_core::DropoutKey;
///
/// // A layer takes another offset in every step of a run.
/// let (layers, layer, step) = (32, 5, 100);
/// let key = DropoutKey { seed: 42, offset: step * layers + layer };
/// assert_ne!(key, DropoutKey { offset: key.offset + 1, ..key });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// Seed of the run.
    pub seed: u64,
    /// Distinguishes layers and steps under one seed.
    pub offset: u64,
}

impl DropoutKey {
    #[inline(always)]
    pub(crate) const fn counter(self, block: u64) -> [u32; 4] {
        [block as u32, (block >> 32) as u32, self.offset as u32, (self.offset >> 32) as u32]
    }
    #[inline(always)]
    pub(crate) const fn key(self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with the known answers published with Random123 (kat_vectors, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn probability_is_checked() {
        for bad in [-0.1, 1.0, 1.5, f32::NAN, 0.999_999] {
            assert!(Dropout::new(bad).is_err(), "{bad}");
        }
        assert_eq!(Dropout::new(0.0).unwrap(), Dropout::NONE);
        assert_eq!(Dropout::new(0.5).unwrap().keep_scale(), 2.0);
    }
}
