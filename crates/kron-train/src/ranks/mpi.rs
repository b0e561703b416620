//! Ranks of MPI: processes that `mpirun` or a cluster's scheduler started.

use std::panic::{set_hook, take_hook};
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use mpi::environment::Universe;
use mpi::point_to_point::{Destination, MatchedReceiveVec, Source};
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::{Rank, Threading};

use super::link::{Link, Lost};
use crate::error::{Error, Result};

/// Time for which a receiver asks again at once.
const EAGER: Duration = Duration::from_micros(200);
/// Time between two questions after that.
const PATIENT: Duration = Duration::from_micros(50);

/// Rank of MPI's world.
pub(super) struct Mpi {
    // MPI ends when it is dropped.
    _universe: Universe,
    world: SimpleCommunicator,
    timeout: Duration,
}

impl Mpi {
    /// Starts MPI, whose calls this thread makes.
    ///
    /// # Errors
    /// MPI runs already in this process.
    pub fn start(timeout: Duration) -> Result<Self> {
        let started = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, _) =
            started.ok_or_else(|| Error::Rank("MPI was started twice in one process".into()))?;
        let world = universe.world();
        // Unwinding would end MPI, which waits for ranks that wait for this one.
        let report = take_hook();
        set_hook(Box::new(move |info| {
            report(info);
            SimpleCommunicator::world().abort(101);
        }));
        Ok(Self { _universe: universe, world, timeout })
    }
}

impl Link for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn count(&self) -> usize {
        self.world.size() as usize
    }

    fn send(&self, to: usize, message: &[u8]) -> Result<(), Lost> {
        self.world.process_at_rank(to as Rank).send(message);
        Ok(())
    }

    fn receive(&self, from: usize, message: &mut Vec<u8>) -> Result<(), Lost> {
        let (process, begin) = (self.world.process_at_rank(from as Rank), Instant::now());
        loop {
            if let Some(found) = process.immediate_matched_probe() {
                *message = found.matched_receive_vec().0;
                return Ok(());
            }
            match begin.elapsed() {
                waited if waited > self.timeout => return Err(Lost::Silent(self.timeout)),
                waited if waited > EAGER => sleep(PATIENT),
                _ => yield_now(),
            }
        }
    }

    fn abort(&self) {
        self.world.abort(1);
    }
}
