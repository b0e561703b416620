//! The choice of a backend: the host's, a CUDA device's, or the emulation's.

use kron_core::{Cpu, KronOp, Pass, Result};

use crate::device;
use crate::pointers::FromPointers;
use crate::types::KronDevice;

/// Work for whichever backend a call names.
pub(crate) trait Job {
    fn on<B: FromPointers>(self, backend: &B) -> Result<()>;
}

/// Runs the job on the host, or on `device` where the caller named one.
pub(crate) fn dispatch(device: Option<&KronDevice>, job: impl Job) -> Result<()> {
    let Some(device) = device else { return job.on(&Cpu::new()) };
    #[cfg(feature = "emulate")]
    if device.device == crate::KRON_EMULATED {
        return job.on(&device::emulated(device));
    }
    #[cfg(feature = "cuda")]
    return job.on(&device::open(device)?);
    #[cfg(not(feature = "cuda"))]
    Err(device::without_cuda())
}

/// Elements of scratch that a call needs on the backend it names.
pub(crate) fn workspace_len(
    device: Option<&KronDevice>,
    op: &KronOp,
    pass: Pass,
    rows: usize,
) -> Result<usize> {
    struct WorkspaceLen<'a> {
        op: &'a KronOp,
        pass: Pass,
        rows: usize,
        len: &'a mut usize,
    }
    impl Job for WorkspaceLen<'_> {
        fn on<B: FromPointers>(self, backend: &B) -> Result<()> {
            *self.len = backend.workspace_len(self.op, self.pass, self.rows);
            Ok(())
        }
    }
    let mut len = 0;
    dispatch(device, WorkspaceLen { op, pass, rows, len: &mut len })?;
    Ok(len)
}
