//! Dropout on the adapter's input, by a counter-based generator: the mask is
//! recomputed from a key, never stored, and is the same on every backend.
//!
//! Element (n, k) of X takes 16 bits of Philox4x32-10 (Salmon et al., SC 2011)
//! at the counter (n·⌈d_in/8⌉ + ⌊k/8⌋, offset) under the key `seed`; it is
//! kept when those bits, as a number in 0…65535, are at least p·65536.

use crate::{Error, Result};

const ROUNDS: u32 = 10;
const M0: u32 = 0xD251_1F53;
const M1: u32 = 0xCD9E_8D57;
const W0: u32 = 0x9E37_79B9;
const W1: u32 = 0xBB67_AE85;

/// Random numbers per Philox block: eight of 16 bits.
pub const PER_BLOCK: usize = 8;

/// Philox4x32-10: 128 random bits from a counter and a key.
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

/// The probability that an element of X is dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    threshold: u32,
}

impl Dropout {
    /// Nothing is dropped.
    pub const NONE: Dropout = Dropout { threshold: 0 };

    /// Dropout with probability p, rounded to the nearest multiple of 2⁻¹⁶.
    ///
    /// # Errors
    /// A p outside 0 ≤ p < 1, or one that rounds to 1.
    pub fn new(p: f32) -> Result<Self> {
        let threshold = (f64::from(p) * 65536.0).round();
        if !(0.0..65536.0).contains(&threshold) || !(0.0..1.0).contains(&p) {
            return Err(Error::Value(format!("dropout is {p}, but a dropout is at least 0 and below 1")));
        }
        Ok(Self { threshold: threshold as u32 })
    }

    /// The probability in force.
    pub fn probability(self) -> f32 {
        self.threshold as f32 / 65536.0
    }

    /// 1 / (1 − p), which keeps the mean.
    pub fn keep_scale(self) -> f32 {
        (65536.0 / (65536.0 - f64::from(self.threshold))) as f32
    }

    /// Elements whose 16 random bits are below this are dropped.
    pub const fn threshold(self) -> u32 {
        self.threshold
    }

    /// Whether element `col` of row `row` of an n × d_in input is kept.
    pub fn keeps(self, key: DropoutKey, d_in: usize, row: usize, col: usize) -> bool {
        let block = row as u64 * d_in.div_ceil(PER_BLOCK) as u64 + (col / PER_BLOCK) as u64;
        let word = philox(key.counter(block), key.key())[col % PER_BLOCK / 2];
        let bits = if col.is_multiple_of(2) { word & 0xffff } else { word >> 16 };
        bits >= self.threshold
    }
}

/// Names one mask: the same key gives the same mask in forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// The run's seed.
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

    /// The known answers published with Random123 (kat_vectors, philox4x32 10).
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
