//! Ranks that are threads of this process.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::World;
use super::link::{Link, Lost};
use crate::error::{Error, Result};

/// Rank that is a thread.
struct Thread {
    rank: usize,
    timeout: Duration,
    /// Ways to each rank, and from each.
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

/// Runs `work` on `count` ranks, each a thread, and returns their results in order.
///
/// A rank that panics is an error here.
pub fn in_threads<T: Send>(
    count: usize,
    timeout: Duration,
    work: impl Fn(World) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let mut to: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    let mut from: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
    for to in &mut to {
        for from in &mut from {
            let (sender, receiver) = channel();
            to.push(sender);
            from.push(receiver);
        }
    }
    let ends = to.into_iter().zip(from).enumerate();
    let links: Vec<_> = ends.map(|(rank, (to, from))| Thread { rank, timeout, to, from }).collect();
    let work = &work;
    std::thread::scope(|scope| {
        let world = move |link| if count == 1 { World::alone() } else { World::new(Box::new(link)) };
        let threads: Vec<_> = links.into_iter().map(|link| scope.spawn(move || work(world(link)))).collect();
        let joined = threads.into_iter().enumerate().map(|(rank, thread)| {
            thread.join().unwrap_or_else(|_| Err(Error::Rank(format!("rank {rank} panicked"))))
        });
        joined.collect()
    })
}

impl Link for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.to.len()
    }

    fn own_timeout(&self) -> Duration {
        self.timeout
    }

    fn send(&self, to: usize, message: &[u8]) -> Result<(), Lost> {
        self.to[to].send(message.to_vec()).map_err(|_| Lost::Ended)
    }

    fn receive(&self, from: usize, message: &mut Vec<u8>) -> Result<(), Lost> {
        let timeout = self.timeout(from);
        *message = self.from[from].recv_timeout(timeout).map_err(|e| match e {
            RecvTimeoutError::Timeout => Lost::Silent(timeout),
            RecvTimeoutError::Disconnected => Lost::Ended,
        })?;
        Ok(())
    }

    fn abort(&self) {}
}
