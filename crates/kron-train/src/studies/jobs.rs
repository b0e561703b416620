//! Independent runs of a study, several at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rayon::ThreadPoolBuilder;

use crate::error::{Result, invalid};
use crate::run::{Progress, Stop};

/// Ways to do the runs of a study.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Largest number of runs at a time, each on its share of the threads.
    pub jobs: usize,
    /// Flag that ends the study after the steps in progress.
    pub stop: Stop,
    /// Visibility of a run's progress; that of several at a time is hidden.
    pub progress: Progress,
}

impl Schedule {
    /// Does one run at a time, with nothing shown.
    pub const fn quiet(stop: Stop) -> Self {
        Self { jobs: 1, stop, progress: Progress::Hidden }
    }

    /// Returns the number of runs at a time, which is at most that of threads.
    pub fn count(&self) -> usize {
        self.jobs.clamp(1, rayon::current_num_threads())
    }

    /// Returns the visibility of a run's progress.
    pub(super) fn shown(&self) -> Progress {
        if self.count() > 1 { Progress::Hidden } else { self.progress }
    }
}

/// Runs of a study with state `S`, of kind `T`, and what becomes of them; a result is `R`.
pub(super) struct Jobs<N, W, D> {
    /// Returns a run to begin while others are in progress.
    pub next: N,
    /// Runs one; `None` if it was stopped.
    pub work: W,
    /// Records a result.
    pub done: D,
}

/// Answer to what can begin now.
pub(super) enum Next<T> {
    /// This run.
    Run(T),
    /// Nothing before another process ends its run.
    WaitForOthers,
    /// Nothing before a run here ends.
    Nothing,
}

/// Time between two questions for what other processes did.
const PAUSE: Duration = Duration::from_millis(500);

/// State that the threads share.
struct Shared<S, T> {
    state: S,
    running: Vec<T>,
    failed: Option<crate::Error>,
    stopped: bool,
}

impl<N, W, D> Jobs<N, W, D> {
    /// Does all runs; returns the state.
    ///
    /// # Errors
    /// A run fails, which stops those in progress and starts no other, or a thread cannot be started.
    pub fn run<S, T, R>(self, schedule: &Schedule, state: S) -> Result<S>
    where
        S: Send,
        T: Clone + PartialEq + Send,
        N: Fn(&mut S, &[T]) -> Result<Next<T>> + Sync,
        W: Fn(&T) -> Result<Option<R>> + Sync,
        D: Fn(&mut S, &T, R) -> Result<()> + Sync,
    {
        let count = schedule.count();
        let shared = Mutex::new(Shared { state, running: Vec::new(), failed: None, stopped: false });
        let ended = Condvar::new();
        let place = || {
            while let Some(task) = self.take(&shared, &ended, &schedule.stop) {
                let panics = EndsOthers { shared: &shared, ended: &ended };
                let result = (self.work)(&task);
                std::mem::forget(panics);
                let mut shared = lock(&shared);
                shared.running.retain(|other| *other != task);
                let recorded = match result {
                    Ok(Some(result)) => (self.done)(&mut shared.state, &task, result),
                    Ok(None) => {
                        shared.stopped = true;
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = recorded {
                    shared.failed.get_or_insert(error);
                    schedule.stop.request();
                }
                ended.notify_all();
            }
        };
        if count == 1 {
            place();
        } else {
            let threads = (rayon::current_num_threads() / count).max(1);
            let pool = || ThreadPoolBuilder::new().num_threads(threads).build();
            let pools = (0..count).map(|_| pool()).collect::<Result<Vec<_>, _>>();
            let pools = pools.map_err(|e| invalid(format!("no threads can be started: {e}")))?;
            let place = &place;
            let begun = std::thread::scope(|scope| {
                pools.iter().try_for_each(|pool| {
                    let run = move || pool.install(place);
                    std::thread::Builder::new().spawn_scoped(scope, run).map(drop).inspect_err(|_| {
                        lock(&shared).stopped = true;
                    })
                })
            });
            begun.map_err(|e| invalid(format!("no threads can be started: {e}")))?;
        }
        let shared = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        shared.failed.map_or(Ok(shared.state), Err)
    }

    /// Waits for a run that can begin; `None` if none will.
    fn take<S, T: Clone>(&self, shared: &Mutex<Shared<S, T>>, ended: &Condvar, stop: &Stop) -> Option<T>
    where
        N: Fn(&mut S, &[T]) -> Result<Next<T>>,
    {
        let mut guard = lock(shared);
        loop {
            if guard.failed.is_some() || guard.stopped {
                return None;
            }
            let Shared { state, running, failed, .. } = &mut *guard;
            match (self.next)(state, running) {
                Ok(Next::Run(task)) => {
                    running.push(task.clone());
                    return Some(task);
                }
                Ok(Next::WaitForOthers) if stop.is_requested() => return None,
                Ok(Next::WaitForOthers) => {
                    let waited = ended.wait_timeout(guard, PAUSE);
                    guard = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Ok(Next::Nothing) if running.is_empty() => return None,
                Ok(Next::Nothing) => guard = ended.wait(guard).unwrap_or_else(PoisonError::into_inner),
                Err(error) => {
                    *failed = Some(error);
                    stop.request();
                    ended.notify_all();
                    return None;
                }
            }
        }
    }
}

/// Ends the other threads' waiting when a run unwinds.
struct EndsOthers<'a, S, T> {
    shared: &'a Mutex<Shared<S, T>>,
    ended: &'a Condvar,
}

impl<S, T> Drop for EndsOthers<'_, S, T> {
    fn drop(&mut self) {
        lock(self.shared).stopped = true;
        self.ended.notify_all();
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Tasks 0 to 9, and for each odd one ended its tenfold; 10 waits for all of them.
    fn next(done: &[u32], running: &[u32]) -> Result<Next<u32>> {
        let free = |task: &u32| !done.contains(task) && !running.contains(task);
        let more = done.iter().filter(|task| **task < 10 && **task % 2 == 1).map(|task| 100 * task);
        let last = running.is_empty().then_some(10);
        let first = (0..10).chain(more).find(free).or_else(|| last.filter(free));
        Ok(first.map_or(Next::Nothing, Next::Run))
    }

    #[test]
    fn every_number_of_jobs_does_the_same_runs() {
        let pool = ThreadPoolBuilder::new().num_threads(8).build().expect("threads");
        for count in [1, 2, 5, 30] {
            let most = AtomicUsize::new(0);
            let now = AtomicUsize::new(0);
            let jobs = Jobs {
                next: |done: &mut Vec<u32>, running: &[u32]| next(done, running),
                work: |task: &u32| {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(std::time::Duration::from_millis(u64::from(*task % 3)));
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok(Some(()))
                },
                done: |done: &mut Vec<u32>, task: &u32, ()| {
                    done.push(*task);
                    Ok(())
                },
            };
            let schedule = Schedule { jobs: count, ..Schedule::quiet(Stop::default()) };
            let mut done = pool.install(|| jobs.run(&schedule, Vec::new())).expect("all runs");
            assert_eq!(done.last(), Some(&10), "the last waits for the others");
            done.sort_unstable();
            assert_eq!(done, (0..=10).chain([100, 300, 500, 700, 900]).collect::<Vec<_>>());
            assert!(most.into_inner() <= count);
        }
    }

    #[test]
    fn a_panic_ends_all() {
        let schedule = Schedule { jobs: 2, ..Schedule::quiet(Stop::default()) };
        let jobs = Jobs {
            // The second waits for the first.
            next: |done: &mut Vec<u32>, running: &[u32]| {
                Ok(if running.is_empty() && done.is_empty() { Next::Run(1) } else { Next::Nothing })
            },
            work: |_: &u32| -> Result<Option<()>> { panic!("a run") },
            done: |_: &mut Vec<u32>, _: &u32, ()| Ok(()),
        };
        let pool = ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
        let run = || pool.install(|| jobs.run(&schedule, Vec::new()));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).expect_err("the panic goes on");
    }

    #[test]
    fn a_failure_and_a_stop_start_no_other_run() {
        for fails in [true, false] {
            let jobs = Jobs {
                next: |done: &mut Vec<u32>, running: &[u32]| next(done, running),
                work: |task: &u32| match (*task, fails) {
                    (3, true) => Err(invalid("three")),
                    (3, false) => Ok(None),
                    _ => Ok(Some(())),
                },
                done: |done: &mut Vec<u32>, task: &u32, ()| {
                    done.push(*task);
                    Ok(())
                },
            };
            let schedule = Schedule::quiet(Stop::default());
            let done = jobs.run(&schedule, Vec::new());
            match fails {
                true => assert_eq!(done.expect_err("a failure").to_string(), "three"),
                false => assert_eq!(done.expect("a stop"), [0, 1, 2]),
            }
            assert_eq!(schedule.stop.is_requested(), fails);
        }
    }
}
