//! Ranks of NCCL: processes that torchrun or Slurm started, each with a GPU of its own.
//!
//! Every message passes through the GPU's memory: its length, then its bytes. A message is sent when the other rank
//! receives it, which the order of exchanges allows: whoever sends waits to be asked first.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use candle_core::cuda_backend::cudarc::nccl::Comm;
use candle_core::cuda_backend::cudarc::nccl::result::NcclError;
use candle_core::cuda_backend::cudarc::nccl::safe::Id;

use super::link::{Link, Lost, PIECE};
use super::rendezvous::Rendezvous;
use super::waiting::Waiting;
use crate::error::{Error, Result};

/// Rank of an NCCL communicator.
pub(super) struct Nccl {
    comm: Comm,
    stream: Arc<CudaStream>,
    length: RefCell<CudaSlice<u8>>,
    message: RefCell<CudaSlice<u8>>,
    timeout: Duration,
    report: fn(&str),
}

impl Nccl {
    /// Joins the communicator of all ranks of a world on a GPU. A rank that goes away meanwhile ends this process, with
    /// a sentence, after `timeout`.
    ///
    /// # Errors
    /// A rank does not come within `timeout`, or CUDA or NCCL fails.
    pub fn start(meeting: &Rendezvous, gpu: usize, timeout: Duration, report: fn(&str)) -> Result<Self> {
        let cuda = |e: DriverError| Error::Rank(format!("cuda:{gpu} of rank {}: {e}", meeting.rank));
        let nccl = |e: NcclError| Error::Rank(format!("NCCL of rank {}: {:?}", meeting.rank, e.0));
        let id = meeting.share(timeout, || Ok(Id::new().map_err(nccl)?.internal().map(|c| c as u8)))?;
        let stream = CudaContext::new(gpu).and_then(|context| context.new_stream()).map_err(cuda)?;
        let length = stream.alloc_zeros(8).map_err(cuda)?;
        let message = stream.alloc_zeros(PIECE).map_err(cuda)?;
        let id = Id::uninit(id.map(|byte| byte as _));
        let watch =
            Watch::over(format!("rank {} of {} to join", meeting.rank, meeting.count), timeout, report);
        let comm = Comm::from_rank(Arc::clone(&stream), meeting.rank, meeting.count, id).map_err(nccl)?;
        drop(watch);
        Ok(Self { comm, stream, length: length.into(), message: message.into(), timeout, report })
    }

    /// Waits until the work on the stream is done.
    fn wait(&self, other: usize) -> Result<(), Lost> {
        let timeout = self.timeout(other);
        let mut waiting = Waiting::new(timeout);
        let done = self.stream.record_event(None).map_err(|e| self.broken(e))?;
        while !done.try_is_complete().map_err(|e| self.broken(e))? {
            if !waiting.goes_on() {
                return Err(Lost::Silent(timeout));
            }
        }
        Ok(())
    }

    /// Watches a call that queues a message: the first one between two ranks waits for the other.
    fn watch(&self, other: usize) -> Watch {
        let what = format!("rank {} of {}, rank {other} to connect", self.rank(), self.count());
        Watch::over(what, self.timeout(other), self.report)
    }

    fn broken(&self, error: impl std::fmt::Debug) -> Lost {
        (self.report)(&format!("rank {} of {}: {error:?}", self.rank(), self.count()));
        Lost::Ended
    }

    /// Sends bytes through a buffer that is at least as long.
    fn put(&self, to: usize, bytes: &[u8], buffer: &RefCell<CudaSlice<u8>>) -> Result<(), Lost> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut buffer = buffer.borrow_mut();
        let mut part = buffer.slice_mut(..bytes.len());
        self.stream.memcpy_htod(bytes, &mut part).map_err(|e| self.broken(e))?;
        let watch = self.watch(to);
        self.comm.send(&part, to as i32).map_err(|e| self.broken(e.0))?;
        drop(watch);
        self.wait(to)
    }

    /// Receives as many bytes as are wanted, through a buffer that is at least as long.
    fn get(&self, from: usize, bytes: &mut [u8], buffer: &RefCell<CudaSlice<u8>>) -> Result<(), Lost> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut buffer = buffer.borrow_mut();
        let mut part = buffer.slice_mut(..bytes.len());
        let watch = self.watch(from);
        self.comm.recv(&mut part, from as i32).map_err(|e| self.broken(e.0))?;
        drop(watch);
        // Only then: a copy to the host would wait without a time-out.
        self.wait(from)?;
        self.stream.memcpy_dtoh(&part, bytes).map_err(|e| self.broken(e))?;
        self.wait(from)
    }
}

/// Guard of a call of NCCL that has no time-out of its own: it ends the process if it lives for longer.
struct Watch(#[expect(dead_code, reason = "its end is what the watching thread waits for")] Sender<()>);

impl Watch {
    fn over(what: String, timeout: Duration, report: fn(&str)) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            if receiver.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout) {
                report(&format!("{what}: nothing for {} s, the time-out", timeout.as_secs_f64()));
                std::process::exit(1);
            }
        });
        Self(sender)
    }
}

impl Link for Nccl {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn count(&self) -> usize {
        self.comm.world_size()
    }

    fn own_timeout(&self) -> Duration {
        self.timeout
    }

    fn send(&self, to: usize, message: &[u8]) -> Result<(), Lost> {
        self.put(to, &(message.len() as u64).to_le_bytes(), &self.length)?;
        self.put(to, message, &self.message)
    }

    fn receive(&self, from: usize, message: &mut Vec<u8>) -> Result<(), Lost> {
        let mut length = [0; 8];
        self.get(from, &mut length, &self.length)?;
        let length = usize::try_from(u64::from_le_bytes(length)).ok().filter(|n| *n <= PIECE);
        message.resize(length.ok_or_else(|| self.broken("a message of another length"))?, 0);
        self.get(from, message, &self.message)
    }

    /// Does nothing: the launcher ends the others when this rank ends with an error.
    fn abort(&self) {}
}
