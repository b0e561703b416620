//! Ranks of MPI: processes that `mpirun` or a cluster's scheduler started.

use std::panic::{set_hook, take_hook};
use std::time::Duration;

use mpi::datatype::Equivalence;
use mpi::environment::Universe;
use mpi::point_to_point::{Destination, Source};
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::{Rank, Threading};

use super::link::{Link, Lost};
use super::waiting::Waiting;
use crate::error::{Error, Result};

/// Rank of MPI's world.
pub(super) struct Mpi {
    // MPI ends when it is dropped.
    _universe: Universe,
    world: SimpleCommunicator,
    timeout: Duration,
    report: fn(&str),
}

impl Mpi {
    /// Starts MPI, whose calls this thread makes; `report` gets the sentence of an error that cannot be returned.
    ///
    /// # Errors
    /// MPI runs already in this process.
    pub fn start(timeout: Duration, report: fn(&str)) -> Result<Self> {
        let started = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, _) =
            started.ok_or_else(|| Error::Rank("MPI was started twice in one process".into()))?;
        let world = universe.world();
        // Unwinding would end MPI, which waits for ranks that wait for this one.
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            usual(info);
            SimpleCommunicator::world().abort(101);
        }));
        Ok(Self { _universe: universe, world, timeout, report })
    }
}

impl Link for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn count(&self) -> usize {
        self.world.size() as usize
    }

    fn own_timeout(&self) -> Duration {
        self.timeout
    }

    fn send(&self, to: usize, message: &[u8]) -> Result<(), Lost> {
        let (process, timeout) = (self.world.process_at_rank(to as Rank), self.timeout(to));
        mpi::request::scope(|scope| {
            let mut request = process.immediate_send(scope, message);
            let mut waiting = Waiting::new(timeout);
            while let Err(pending) = request.test() {
                request = pending;
                if !waiting.goes_on() {
                    // MPI reads the message as long as the request lives, so that nothing can be returned.
                    (self.report)(&format!(
                        "rank {} of {}: rank {to} takes no message for {} s, the time-out",
                        self.rank(),
                        self.count(),
                        timeout.as_secs_f64()
                    ));
                    self.abort();
                }
            }
        });
        Ok(())
    }

    fn receive(&self, from: usize, message: &mut Vec<u8>) -> Result<(), Lost> {
        let (process, timeout) = (self.world.process_at_rank(from as Rank), self.timeout(from));
        let mut waiting = Waiting::new(timeout);
        loop {
            if let Some((found, status)) = process.immediate_matched_probe() {
                message.resize(status.count(u8::equivalent_datatype()) as usize, 0);
                found.matched_receive_into(&mut message[..]);
                return Ok(());
            }
            if !waiting.goes_on() {
                return Err(Lost::Silent(timeout));
            }
        }
    }

    fn abort(&self) {
        self.world.abort(1);
    }
}
