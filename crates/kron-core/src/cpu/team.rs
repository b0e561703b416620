//! [`Team`]: the threads that compute the partitions of a call.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::partition::MAX_PARTS;

/// Threads that compute a call's partitions, which do not depend on them, and neither does any bit of a result.
#[derive(Clone, Copy, Default)]
pub enum Team {
    /// Rayon's current thread pool.
    #[default]
    Rayon,
    /// The calling thread.
    Caller,
    /// Threads of another runtime, such as OpenMP's. The function calls its task once with each number below the
    /// count, on any threads, and returns when all calls have. A number that it leaves out is computed by the caller.
    Custom(fn(count: usize, task: &(dyn Fn(usize) + Sync))),
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rayon => "Rayon",
            Self::Caller => "Caller",
            Self::Custom(_) => "Custom",
        })
    }
}

impl Team {
    /// Number of threads, at most [`MAX_PARTS`]: as many for a runtime that does not say it.
    pub(super) fn threads(self) -> usize {
        match self {
            Self::Rayon => rayon::current_num_threads().min(MAX_PARTS),
            Self::Caller => 1,
            Self::Custom(_) => MAX_PARTS,
        }
    }

    /// Returns the team for `parts` parts of 20 to 40 µs each: the caller alone where threads would first have to wake,
    /// which takes as long as two such parts.
    pub(super) fn for_short(self, parts: usize) -> Self {
        match self {
            Self::Rayon if parts < 4 && rayon::current_thread_index().is_none() => Self::Caller,
            team => team,
        }
    }

    /// Calls `f` with each of at most [`MAX_PARTS`] parts and its number; one part stays on the calling thread.
    pub(super) fn each<T: Send>(self, mut parts: impl Iterator<Item = T>, f: impl Fn(usize, T) + Sync) {
        let (first, second) = (parts.next(), parts.next());
        let Some(second) = second else {
            return first.into_iter().for_each(|only| f(0, only));
        };
        let slots = [const { Mutex::new(None) }; MAX_PARTS];
        let mut count = 0;
        for (slot, part) in slots.iter().zip(first.into_iter().chain([second]).chain(parts)) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(part);
            count += 1;
        }
        let task = |i: usize| {
            let part =
                slots.get(i).and_then(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).take());
            if let Some(part) = part {
                f(i, part);
            }
        };
        match self {
            Self::Rayon if rayon::current_thread_index().is_some() => {
                (0..count).into_par_iter().for_each(task);
            }
            Self::Rayon => beside_pool(count, &task),
            Self::Caller => {}
            Self::Custom(run) => run(count, &task),
        }
        (0..count).for_each(task);
    }
}

/// Calls the task on a thread outside rayon's pool and on all but one of the pool's.
///
/// A parallel loop would put the caller to sleep until a thread of the pool has woken.
fn beside_pool(count: usize, task: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    let take_all = || {
        loop {
            let i = next.fetch_add(1, Relaxed);
            if i >= count {
                return;
            }
            task(i);
        }
    };
    rayon::in_place_scope(|scope| {
        for _ in 1..rayon::current_num_threads().min(count) {
            scope.spawn(|_| take_all());
        }
        take_all();
    });
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    use super::*;

    /// Counts the calls of each part, on each kind of team, outside a pool and inside; two of them do not keep the promise.
    #[test]
    fn every_part_is_computed_once() {
        count_calls();
        for threads in [1, 3] {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a pool")
                .install(count_calls);
        }
    }

    /// The caller computes a part itself, and with the pool's threads there are not more than the pool has.
    #[test]
    fn a_caller_outside_the_pool_takes_part() {
        let caller = std::thread::current().id();
        let (here, threads) = (AtomicBool::new(false), Mutex::new(HashSet::new()));
        Team::Rayon.each(0..MAX_PARTS, |_, _| {
            let (this, since) = (std::thread::current().id(), Instant::now());
            here.fetch_or(this == caller, Relaxed);
            while !here.load(Relaxed) && since.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
            threads.lock().unwrap_or_else(PoisonError::into_inner).insert(this);
        });
        assert!(here.into_inner(), "every part was left to the pool");
        let threads = threads.into_inner().unwrap_or_else(PoisonError::into_inner);
        assert!(threads.len() <= rayon::current_num_threads(), "{threads:?}");
    }

    fn count_calls() {
        let threads = |count: usize, task: &(dyn Fn(usize) + Sync)| {
            std::thread::scope(|scope| (0..count).for_each(|i| drop(scope.spawn(move || task(i)))));
        };
        let lazy = |_: usize, task: &(dyn Fn(usize) + Sync)| task(1);
        let eager = |count: usize, task: &(dyn Fn(usize) + Sync)| (0..3 * count).for_each(|i| task(i / 2));
        for team in
            [Team::Rayon, Team::Caller, Team::Custom(threads), Team::Custom(lazy), Team::Custom(eager)]
        {
            for count in 0..=MAX_PARTS {
                let calls = [const { AtomicUsize::new(0) }; MAX_PARTS];
                team.each(0..count, |i, part| {
                    assert_eq!(i, part);
                    calls[i].fetch_add(1, Relaxed);
                });
                let calls = calls.map(AtomicUsize::into_inner);
                assert!(calls[..count].iter().all(|&n| n == 1), "{team:?}, {count}: {calls:?}");
                assert!(calls[count..].iter().all(|&n| n == 0), "{team:?}, {count}: {calls:?}");
            }
        }
    }
}
