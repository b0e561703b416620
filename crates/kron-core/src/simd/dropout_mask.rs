//! The dropout mask of X, computed sixteen Philox blocks at a time.

use crate::dropout::{PER_BLOCK, philox};
use crate::{Dropout, DropoutKey};

/// Philox blocks computed together, one per lane of a register.
const SIDE_BY_SIDE: usize = 16;

/// Sets `keep[c]` to `dropout.keeps(key, d_in, row, first + c)`.
pub(crate) fn keep_mask(
    dropout: Dropout,
    key: DropoutKey,
    d_in: usize,
    row: usize,
    first: usize,
    keep: &mut [bool],
) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has AVX-512 F.
            return unsafe { avx512(dropout, key, d_in, row, first, keep) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has AVX2.
            return unsafe { avx2(dropout, key, d_in, row, first, keep) };
        }
    }
    fill(dropout, key, d_in, row, first, keep);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(dropout: Dropout, key: DropoutKey, d_in: usize, row: usize, first: usize, keep: &mut [bool]) {
    fill(dropout, key, d_in, row, first, keep);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(dropout: Dropout, key: DropoutKey, d_in: usize, row: usize, first: usize, keep: &mut [bool]) {
    fill(dropout, key, d_in, row, first, keep);
}

#[inline(always)]
fn fill(dropout: Dropout, key: DropoutKey, d_in: usize, row: usize, first: usize, keep: &mut [bool]) {
    let row_block = row as u64 * d_in.div_ceil(PER_BLOCK) as u64;
    let mut bits = [0u16; SIDE_BY_SIDE * PER_BLOCK];
    let mut done = 0;
    while done < keep.len() {
        let (block, skip) = ((first + done) / PER_BLOCK, (first + done) % PER_BLOCK);
        random_bits(row_block + block as u64, key, &mut bits);
        let count = (bits.len() - skip).min(keep.len() - done);
        for (keep, bits) in keep[done..done + count].iter_mut().zip(&bits[skip..]) {
            *keep = u32::from(*bits) >= dropout.threshold();
        }
        done += count;
    }
}

/// Computes the 16-bit random values of [`SIDE_BY_SIDE`] consecutive blocks.
#[inline(always)]
fn random_bits(first: u64, key: DropoutKey, bits: &mut [u16; SIDE_BY_SIDE * PER_BLOCK]) {
    let mut words = [[0u32; SIDE_BY_SIDE]; 4];
    for l in 0..SIDE_BY_SIDE {
        let block = philox(key.counter(first + l as u64), key.key());
        for w in 0..4 {
            words[w][l] = block[w];
        }
    }
    for l in 0..SIDE_BY_SIDE {
        for w in 0..4 {
            bits[l * PER_BLOCK + 2 * w] = words[w][l] as u16;
            bits[l * PER_BLOCK + 2 * w + 1] = (words[w][l] >> 16) as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_as_defined() {
        let dropout = Dropout::new(0.3).unwrap();
        let key = DropoutKey { seed: 0x1234_5678_9abc, offset: 77 };
        for (d_in, row, first, len) in
            [(37, 5, 0, 37), (1000, 3, 13, 301), (256, 1 << 33, 8, 128), (9, 0, 8, 1)]
        {
            let mut keep = vec![false; len];
            keep_mask(dropout, key, d_in, row, first, &mut keep);
            for (c, keep) in keep.into_iter().enumerate() {
                assert_eq!(keep, dropout.keeps(key, d_in, row, first + c), "{d_in} {row} {first} {c}");
            }
        }
    }
}
