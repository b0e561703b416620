//! The choice of a backend: the host's, a CUDA device's, or the emulation's.

use kron_core::{KronOp, Pass, Result};
use kron_kernels::{Cuda, Launcher};

use crate::device;
use crate::group_backend::Groups;
use crate::team;
use crate::types::KronDevice;

/// Work for whichever backend a call names.
pub(crate) trait Job {
    fn on<B: Groups>(self, backend: &B) -> Result<()>;
}

/// Work for a device.
pub(crate) trait DeviceJob {
    // A build without a device has none to give it to.
    #[cfg_attr(not(any(feature = "cuda", all(feature = "emulate", debug_assertions))), allow(dead_code))]
    fn on<L: Launcher>(self, on: &Cuda<L>) -> Result<()>;
}

/// Runs the job on a device.
#[cfg_attr(not(any(feature = "cuda", all(feature = "emulate", debug_assertions))), allow(unused_variables))]
pub(crate) fn on_device(device: KronDevice, job: impl DeviceJob) -> Result<()> {
    match device {
        // A release build has no emulation, even where another crate or its tests turn the feature on.
        #[cfg(all(feature = "emulate", debug_assertions))]
        KronDevice { device: crate::KRON_EMULATED, .. } => {
            job.on(&device::keyed(Cuda::with(kron_kernels::Emulated::new())))
        }
        #[cfg(feature = "cuda")]
        named => job.on(&device::keyed(device::open(named)?)),
        #[cfg(not(feature = "cuda"))]
        _ => Err(device::without_cuda()),
    }
}

/// Runs the job on the host, or on `device` where the caller named one.
pub(crate) fn dispatch(device: Option<KronDevice>, job: impl Job) -> Result<()> {
    struct OnDevice<J>(J);
    impl<J: Job> DeviceJob for OnDevice<J> {
        fn on<L: Launcher>(self, on: &Cuda<L>) -> Result<()> {
            self.0.on(on)
        }
    }
    match device {
        None => job.on(&team::host()),
        Some(device) => on_device(device, OnDevice(job)),
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
        fn on<B: Groups>(self, backend: &B) -> Result<()> {
            *self.len = backend.workspace_len(self.op, self.pass, self.rows);
            Ok(())
        }
    }
    let mut len = 0;
    dispatch(device, WorkspaceLen { op, pass, rows, len: &mut len })?;
    Ok(len)
}
