//! [`Launcher`]: the interface of a GPU and of its emulation.

use kron_core::Result;

use crate::Problem;
use crate::device::StreamHandle;
use crate::params::KronParams;
use crate::plan::{GroupPlan, LaunchPlan, Step};

/// Runs kernels by name: a GPU, or its emulation.
pub trait Launcher {
    /// Plans a problem with [`LaunchPlan::new`], so that the bits do not depend on the device. Tests override
    /// it for plans of few blocks.
    ///
    /// # Errors
    /// As [`LaunchPlan::new`].
    fn plan(&self, problem: &Problem) -> Result<LaunchPlan> {
        LaunchPlan::new(problem)
    }

    /// Plans a call over segments with [`LaunchPlan::segments`].
    ///
    /// # Errors
    /// As [`LaunchPlan::segments`].
    fn plan_segments(&self, problem: &Problem, slots: usize) -> Result<LaunchPlan> {
        LaunchPlan::segments(problem, slots)
    }

    /// Plans a call over a group with [`GroupPlan::new`].
    ///
    /// # Errors
    /// As [`GroupPlan::new`].
    fn plan_group(&self, x: &Problem, terms: &[Problem]) -> Result<Option<GroupPlan>> {
        GroupPlan::new(x, terms)
    }

    /// Queues one launch on the stream.
    ///
    /// # Errors
    /// Fails if the device, or its emulation, refuses the launch.
    ///
    /// # Safety
    /// Every pointer in `params` that the kernel reads or writes is valid for
    /// the problem's sizes until the launch has run.
    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()>;
}

impl<L: Launcher> Launcher for &L {
    fn plan(&self, problem: &Problem) -> Result<LaunchPlan> {
        (**self).plan(problem)
    }

    fn plan_segments(&self, problem: &Problem, slots: usize) -> Result<LaunchPlan> {
        (**self).plan_segments(problem, slots)
    }

    fn plan_group(&self, x: &Problem, terms: &[Problem]) -> Result<Option<GroupPlan>> {
        (**self).plan_group(x, terms)
    }

    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()> {
        // SAFETY: the caller's promise about the pointers in `params`.
        unsafe { (**self).launch(step, params, stream) }
    }
}
