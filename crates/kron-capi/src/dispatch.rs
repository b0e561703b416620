//! The choice of a backend: the host's, a CUDA device's, or the emulation's.

use kron_core::{KronOp, Pass, Result};

use crate::device;
use crate::pointers::FromPointers;
use crate::team;
use crate::types::KronDevice;

/// Work for whichever backend a call names.
pub(crate) trait Job {
    fn on<B: FromPointers>(self, backend: &B) -> Result<()>;
}

/// Runs the job on the host, or on `device` where the caller named one.
pub(crate) fn dispatch(device: Option<KronDevice>, job: impl Job) -> Result<()> {
    match device {
        None => job.on(&team::host()),
        // A release build has no emulation, even where another crate or its tests turn the feature on.
        #[cfg(all(feature = "emulate", debug_assertions))]
        Some(KronDevice { device: crate::KRON_EMULATED, .. }) => {
            job.on(&device::keyed(kron_kernels::Cuda::with(kron_kernels::Emulated::new())))
        }
        #[cfg(feature = "cuda")]
        Some(device) => job.on(&device::keyed(device::open(device)?)),
        #[cfg(not(feature = "cuda"))]
        Some(_) => Err(device::without_cuda()),
    }
}

/// Elements of scratch that a call needs on the backend it names.
pub(crate) fn workspace_len(
    device: Option<KronDevice>,
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
