//! [`Gpu`]: a device with the kernels.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::kernels::{Kernels, unavailable};
use super::library;
use super::thread::Current;
use crate::Problem;
use crate::device::StreamHandle;
use crate::launcher::Launcher;
use crate::params::KronParams;
use crate::plan::{BLOCKS, GroupPlan, LaunchPlan, Step};
use kron_core::{Error, Result};

/// A device's primary context with the kernels loaded. Frameworks on the CUDA runtime
/// use the same context, so their pointers and streams are valid here.
pub struct Gpu {
    context: Arc<CudaContext>,
    kernels: Arc<Kernels>,
    blocks: usize,
    /// True if the device can start a kernel before the one before it has ended: from sm_90 on.
    early: bool,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (device, blocks) = (self.context.ordinal(), self.blocks);
        f.debug_struct("Gpu").field("device", &device).field("blocks", &blocks).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Returns the number of devices.
    ///
    /// # Errors
    /// Fails if the driver library is missing or does not start; never panics.
    pub fn count() -> Result<usize> {
        library::devices()
    }

    /// Loads the kernels on device `ordinal`, or shares those that another `Gpu` has loaded.
    ///
    /// # Errors
    /// Fails without a driver, with one that is too old, if the device does not exist, or if the kernels have
    /// no code for it.
    pub fn new(ordinal: usize) -> Result<Self> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(Error::Unsupported(format!(
                "device {ordinal} of {count} CUDA devices does not exist"
            )));
        }
        library::check_version()?;
        let _before = Current::kept().map_err(|e| unavailable("the thread's context", e))?;
        let context = CudaContext::new(ordinal).map_err(|e| unavailable("the device's context", e))?;
        let kernels = Kernels::of(&context)?;
        let (major, _) = context.compute_capability().map_err(|e| unavailable("the device's context", e))?;
        Ok(Self { context, kernels, blocks: BLOCKS, early: major >= 9 })
    }

    /// Sets the number of blocks that plans aim at. With few blocks each takes many steps even in a small
    /// problem, which tests need.
    pub fn aimed_at(self, blocks: usize) -> Self {
        Self { blocks, ..self }
    }

    /// Returns the context, for its streams and memory.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }
}

impl Launcher for Gpu {
    fn plan(&self, problem: &Problem) -> Result<LaunchPlan> {
        LaunchPlan::aimed_at(self.blocks, problem)
    }

    fn plan_segments(&self, problem: &Problem, slots: usize) -> Result<LaunchPlan> {
        LaunchPlan::segments_aimed_at(self.blocks, problem, slots)
    }

    fn plan_group(&self, x: &Problem, terms: &[Problem]) -> Result<Option<GroupPlan>> {
        GroupPlan::aimed_at(self.blocks, x, terms)
    }

    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()> {
        let _current = Current::of(&self.context).map_err(|e| unavailable("the device's context", e))?;
        let function = self.kernels.function(&step.kernel)?;
        let mut arguments = [params as *const KronParams as *mut c_void];
        let stream = stream.raw() as sys::CUstream;
        let launched = if step.early && self.early {
            // SAFETY: as below; every kernel waits for those before it before it touches memory, and the
            // kernel before is of the same call, so that it runs on the same stream.
            unsafe { launch_early(function, step, stream, &mut arguments) }
        } else {
            let (grid, block) = ((step.grid, 1, 1), (step.block, 1, 1));
            // SAFETY: every kernel takes one KronParams by value, which the driver
            // copies during the call; the caller vouches for its pointers, and the
            // maker of the stream handle for the stream.
            unsafe { result::launch_kernel(function, grid, block, step.shared, stream, &mut arguments) }
        };
        launched.map_err(|e| {
            Error::Device(format!(
                "{} with {} blocks of {} threads and {} bytes of shared memory: {e:?}",
                step.kernel, step.grid, step.block, step.shared
            ))
        })
    }
}

/// Queues a launch that may start before the kernel before it has ended.
///
/// # Safety
/// As for [`result::launch_kernel`]; the kernel waits for those before it before it touches memory.
unsafe fn launch_early(
    function: sys::CUfunction,
    step: &Step,
    stream: sys::CUstream,
    arguments: &mut [*mut c_void],
) -> Result<(), DriverError> {
    let mut early = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: step.grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: step.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: step.shared,
        hStream: stream,
        attrs: &mut early,
        numAttrs: 1,
    };
    // SAFETY: the caller's promise; the configuration and its attribute live through the call.
    unsafe { sys::cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), std::ptr::null_mut()) }.result()
}
