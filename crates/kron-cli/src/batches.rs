//! Layers side by side, as many as the memory allows.

use rayon::prelude::*;

/// Applies `work` to all items in parallel and returns the results in order. The items that are worked on at one
/// time take at most `memory` bytes together; one that takes more runs alone.
pub fn in_batches<T: Sync, R: Send>(
    items: &[T],
    bytes: impl Fn(&T) -> u128,
    memory: u64,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let mut done = Vec::with_capacity(items.len());
    while done.len() < items.len() {
        let rest = &items[done.len()..];
        let sums = rest.iter().scan(0u128, |sum, item| {
            *sum = sum.saturating_add(bytes(item));
            Some(*sum)
        });
        let fitting = sums.take_while(|sum| *sum <= memory.into()).count();
        let batch = &rest[..fitting.max(1)];
        done.par_extend(batch.par_iter().map(&work));
    }
    done
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn items_share_the_memory_and_keep_their_order() {
        let items: Vec<u64> = (0..200).map(|i| i * 37 % 61).collect();
        for memory in [0, 10, 60, 100, 1000, u64::MAX] {
            let (held, most) = (AtomicU64::new(0), AtomicU64::new(0));
            let done = in_batches(
                &items,
                |bytes| (*bytes).into(),
                memory,
                |bytes| {
                    most.fetch_max(held.fetch_add(*bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                    std::thread::yield_now();
                    held.fetch_sub(*bytes, Ordering::SeqCst);
                    *bytes
                },
            );
            assert_eq!(done, items);
            let most = most.load(Ordering::SeqCst);
            assert!(most <= memory.max(60), "{most} of {memory}");
        }
        assert!(in_batches(&[] as &[u64], |_| 1, 0, |bytes| *bytes).is_empty());
    }
}
