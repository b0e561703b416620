//! Ranks: processes that share the steps of one run.
//!
//! ```text
//! Link (threads, MPI or NCCL): a message to a rank, the next one from a rank
//!   └▶ World: exchanges of all ranks, each with a number and a name that both sides of a message compare
//!        └▶ a run: what every rank says, the sum of gradients in the order of ranks
//! ```
//!
//! A rank that fails says so in the next exchange, and every rank returns an error. A rank that takes another path,
//! ends, or is silent for longer than the time-out makes its neighbours return one; [`World::abort`] then ends the job.

mod launcher;
mod link;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(any(test, feature = "nccl"))]
mod rendezvous;
mod start;
mod sum;
mod threads;
#[cfg(any(test, feature = "mpi", feature = "nccl"))]
mod waiting;

use std::cell::Cell;
use std::ops::Range;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use link::Link;
pub use start::{local_rank, sharers, start};
pub use threads::in_threads;

/// All ranks of a run, from the place of one of them.
pub struct World {
    /// `None` for a single rank.
    link: Option<Box<dyn Link>>,
    /// Number of the next exchange.
    next: Cell<u64>,
    /// True once all ranks know of a failure.
    has_failed: Cell<bool>,
}

/// Answer of a rank in an exchange.
#[derive(Serialize, serde::Deserialize)]
enum Said<T> {
    Done(T),
    Failed(String),
}

impl World {
    /// Makes the world of a single rank, in which every exchange is free.
    pub const fn alone() -> Self {
        Self { link: None, next: Cell::new(0), has_failed: Cell::new(false) }
    }

    fn new(link: Box<dyn Link>) -> Self {
        Self { link: Some(link), ..Self::alone() }
    }

    /// Returns this rank's number, from 0.
    pub fn rank(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.rank())
    }

    /// Returns the number of ranks.
    pub fn count(&self) -> usize {
        self.link.as_ref().map_or(1, |link| link.count())
    }

    /// Returns true for the rank that writes and prints.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Returns true if every rank knows that the run failed, so that each ends by itself.
    pub fn has_failed(&self) -> bool {
        self.has_failed.get()
    }

    /// Returns an error that every rank finds by itself, from what all of them know.
    ///
    /// # Errors
    /// Always.
    pub fn fail<T>(&self, error: Error) -> Result<T> {
        self.has_failed.set(true);
        Err(error)
    }

    /// Ends all ranks at once, where the link can do that; returns where it cannot.
    pub fn abort(&self) {
        if let Some(link) = &self.link {
            link.abort();
        }
    }

    /// Returns this rank's part of `n` things in a row: consecutive ones, as many as for any other rank or one more.
    pub fn share(&self, n: usize) -> Range<usize> {
        let (rank, count) = (self.rank(), self.count());
        n * rank / count..n * (rank + 1) / count
    }

    /// Returns what all ranks have, in their order.
    ///
    /// # Errors
    /// This rank failed, another one did, or an exchange fails.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, what: &str, own: Result<T>) -> Result<Vec<T>> {
        let Some(link) = &self.link else { return Ok(vec![own?]) };
        let (said, failed) = match own {
            Ok(value) => (Said::Done(value), None),
            Err(error) => (Said::Failed(error.to_string()), Some(error)),
        };
        let text = serde_json::to_vec(&said).map_err(|e| Error::Rank(e.to_string()))?;
        let mut all = Vec::with_capacity(self.count());
        let mut first_failure = None;
        for (rank, text) in self.gather_bytes(&**link, what, text)?.iter().enumerate() {
            match serde_json::from_slice(text)
                .map_err(|e| Error::Rank(format!("{what} of rank {rank}: {e}")))?
            {
                Said::Done(value) => all.push(value),
                Said::Failed(message) if first_failure.is_none() => {
                    first_failure = Some(Error::Rank(format!("rank {rank}: {message}")));
                }
                Said::Failed(_) => {}
            }
        }
        match failed.or(first_failure) {
            None => Ok(all),
            Some(error) => self.fail(error),
        }
    }

    /// Returns this rank's result, if no rank failed.
    ///
    /// # Errors
    /// This rank failed, another one did, or an exchange fails.
    pub fn together<T>(&self, what: &str, own: Result<T>) -> Result<T> {
        let (value, done) = match own {
            Ok(value) => (Some(value), Ok(())),
            Err(error) => (None, Err(error)),
        };
        self.gather(what, done)?;
        value.ok_or_else(|| Error::Rank(format!("{what} failed")))
    }

    /// Calls `work` on the first rank alone, and returns its result there, the default elsewhere.
    ///
    /// # Errors
    /// The work fails, which is then an error of every rank, or an exchange fails.
    pub fn on_first<T: Default>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.together(what, if self.is_first() { work() } else { Ok(T::default()) })
    }

    /// Returns the first rank's bytes on every rank.
    ///
    /// # Errors
    /// An exchange fails.
    pub fn broadcast(&self, what: &str, own: Vec<u8>) -> Result<Vec<u8>> {
        let Some(link) = &self.link else { return Ok(own) };
        let own = if self.is_first() { own } else { Vec::new() };
        let mut all = self.gather_bytes(&**link, what, own)?;
        Ok(all.swap_remove(0))
    }

    fn gather_bytes(&self, link: &dyn Link, what: &str, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let exchange = self.begin(what);
        let mut all = vec![Vec::new(); self.count()];
        if self.is_first() {
            all[0] = own;
            for (rank, theirs) in all.iter_mut().enumerate().skip(1) {
                *theirs = link::receive(link, rank, &exchange)?;
            }
            // One list of all: lengths, then the bytes one after another.
            let lens: Vec<u8> = all.iter().flat_map(|one| (one.len() as u64).to_le_bytes()).collect();
            let list = [lens, all.concat()].concat();
            for rank in 1..self.count() {
                link::send(link, rank, &exchange, &list)?;
            }
            return Ok(all);
        }
        link::send(link, 0, &exchange, &own)?;
        let list = link::receive(link, 0, &exchange)?;
        split(&list, &mut all)
            .ok_or_else(|| Error::Rank(format!("rank 0 sent {} bytes for {what}", list.len())))?;
        Ok(all)
    }

    fn begin(&self, what: &str) -> String {
        let number = self.next.get();
        self.next.set(number + 1);
        format!("exchange {number}, {what}")
    }
}

/// Takes a list of all ranks' bytes apart; `None` if it is too short.
fn split(list: &[u8], all: &mut [Vec<u8>]) -> Option<()> {
    let (lens, mut rest) = list.split_at_checked(8 * all.len())?;
    for (one, len) in all.iter_mut().zip(lens.as_chunks::<8>().0) {
        let (own, after) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        (*one, rest) = (own.to_vec(), after);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::invalid;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn ranks_hear_each_other_in_order_and_learn_of_a_failure() {
        for count in 1..5 {
            let all = in_threads(count, LONG, |world| {
                let own = world.rank() as u32 * 10;
                let gathered = world.gather("numbers", Ok(own))?;
                let first = world.broadcast("bytes", vec![world.rank() as u8 + 7; 3])?;
                let on_first = world.on_first("work", || Ok(5u8))?;
                assert_eq!((first, on_first), (vec![7; 3], if world.rank() == 0 { 5 } else { 0 }));
                Ok(gathered)
            });
            let want: Vec<u32> = (0..count as u32).map(|rank| rank * 10).collect();
            assert!(all.into_iter().all(|got| got.expect("an exchange") == want));
        }
        let all = in_threads(3, LONG, |world| {
            let own = if world.rank() == 1 { Err(invalid("it broke")) } else { Ok(()) };
            let done = world.gather("work", own).map(drop);
            assert!(world.has_failed());
            done
        });
        let said: Vec<String> = all.into_iter().map(|one| one.expect_err("a failure").to_string()).collect();
        assert_eq!(said, ["rank 1: it broke", "it broke", "rank 1: it broke"]);
    }

    #[test]
    fn shares_are_consecutive_and_equal_but_for_one() {
        for (n, count) in [(0, 3), (1, 3), (7, 3), (12, 4)] {
            let shares = in_threads(count, LONG, |world| Ok(world.share(n)));
            let shares: Vec<_> = shares.into_iter().map(|share| share.expect("a range")).collect();
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert_eq!((shares[0].start, shares[count - 1].end), (0, n));
            assert!(shares.iter().all(|share| (n / count..=n.div_ceil(count)).contains(&share.len())));
        }
    }

    /// Ranks that do not do the same get an error, and none waits for ever.
    #[test]
    fn another_path_silence_and_an_end_are_errors() {
        let said = |all: Vec<Result<()>>| -> Vec<String> {
            all.into_iter().map(|one| one.expect_err("a failure").to_string()).collect()
        };
        let short = Duration::from_millis(200);
        let path = said(in_threads(2, short, |world| {
            let what = if world.is_first() { "a step" } else { "an evaluation" };
            world.gather(what, Ok(())).map(drop)
        }));
        assert!(
            path.iter().any(|e| e.contains("exchange 0, a step") && e.contains("exchange 0, an evaluation")),
            "{path:?}"
        );
        let ended = said(in_threads(2, LONG, |world| match world.rank() {
            0 => world.gather("a step", Ok(())).map(drop),
            _ => Err(invalid("gone")),
        }));
        assert_eq!(ended, ["rank 1 ended before exchange 0, a step", "gone"]);
        let silent = said(in_threads(2, short, |world| match world.rank() {
            0 => world.gather("a step", Ok(())).map(drop),
            _ => {
                std::thread::sleep(4 * short);
                Err(invalid("late"))
            }
        }));
        assert_eq!(silent[0], "rank 1 is silent for 0.2 s, the time-out, in exchange 0, a step");
        // The first of three names the silent one, and the other hears that it ended.
        let silent = said(in_threads(3, short, |world| match world.rank() {
            2 => {
                std::thread::sleep(6 * short);
                Err(invalid("late"))
            }
            _ => world.gather("a step", Ok(())).map(drop),
        }));
        assert_eq!(silent[0], "rank 2 is silent for 0.2 s, the time-out, in exchange 0, a step");
        assert_eq!(silent[1], "rank 0 ended before exchange 0, a step");
    }
}
