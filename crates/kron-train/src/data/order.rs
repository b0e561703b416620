//! Order of the examples, as a function of seed and epoch: a run resumes at any step without saved state.

use kron_core::philox;

/// Returns a permutation of 0 … n − 1 (Fisher–Yates on Philox).
pub fn permutation(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let bits = philox([i as u32, epoch as u32, 0x6f72_6465, 0], key);
        let wide = u64::from(bits[0]) | u64::from(bits[1]) << 32;
        // 64 bits against an n of at most 2³²: the bias is below 2⁻³².
        order.swap(i, (wide % (i as u64 + 1)) as usize);
    }
    order
}

/// Returns the batches of one epoch, each of `size` examples except a shorter last one.
pub fn shuffled_batches(n: usize, size: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    permutation(n, seed, epoch).chunks(size).map(<[usize]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_comes_once_and_every_epoch_is_another_order() {
        let first = permutation(100, 3, 0);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_ne!(first, sorted);
        assert_eq!(first, permutation(100, 3, 0));
        assert_ne!(first, permutation(100, 3, 1));
        assert_ne!(first, permutation(100, 4, 0));
        let batches = shuffled_batches(100, 32, 3, 0);
        assert_eq!(batches.concat(), first);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [32, 32, 32, 4]);
    }
}
