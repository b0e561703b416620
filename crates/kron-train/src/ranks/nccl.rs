//! Ranks of NCCL: processes that torchrun or Slurm started, each with a GPU of its own.
//!
//! Every message passes through the GPU's memory: its length, then its bytes. A message is sent when the other rank
//! receives it, which the order of exchanges allows: whoever sends waits to be asked first.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};
use candle_core::cuda_backend::cudarc::nccl::Comm;
use candle_core::cuda_backend::cudarc::nccl::result::NcclError;
use candle_core::cuda_backend::cudarc::nccl::safe::Id;

use super::link::{Link, Lost, PIECE};
use super::place::Place;
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
    /// Joins the communicator of all ranks of a world on a GPU.
    ///
    /// # Errors
    /// A rank does not come within `timeout`, or CUDA or NCCL fails.
    pub fn start(place: &Place, gpu: usize, timeout: Duration, report: fn(&str)) -> Result<Self> {
        let cuda = |e: DriverError| Error::Rank(format!("cuda:{gpu} of rank {}: {e}", place.rank));
        let nccl = |e: NcclError| Error::Rank(format!("NCCL of rank {}: {:?}", place.rank, e.0));
        let id = place.share(timeout, || Ok(Id::new().map_err(nccl)?.internal().map(|c| c as u8)))?;
        let stream = CudaContext::new(gpu).and_then(|context| context.new_stream()).map_err(cuda)?;
        let length = stream.alloc_zeros(8).map_err(cuda)?;
        let message = stream.alloc_zeros(PIECE).map_err(cuda)?;
        let id = Id::uninit(id.map(|byte| byte as _));
        let comm = Comm::from_rank(Arc::clone(&stream), place.rank, place.count, id).map_err(nccl)?;
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
        self.comm.send(&part, to as i32).map_err(|e| self.broken(e.0))?;
        self.wait(to)
    }

    /// Receives as many bytes as are wanted, through a buffer that is at least as long.
    fn get(&self, from: usize, bytes: &mut [u8], buffer: &RefCell<CudaSlice<u8>>) -> Result<(), Lost> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut buffer = buffer.borrow_mut();
        let mut part = buffer.slice_mut(..bytes.len());
        self.comm.recv(&mut part, from as i32).map_err(|e| self.broken(e.0))?;
        // Only then: a copy to the host would wait without a time-out.
        self.wait(from)?;
        self.stream.memcpy_dtoh(&part, bytes).map_err(|e| self.broken(e))?;
        self.wait(from)
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

    /// Returns: the launcher ends the others when this rank ends with an error.
    fn abort(&self) {}
}
