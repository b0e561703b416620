//! Names in a profiler's timeline, by NVTX. Does nothing without the feature `nvtx`.

use crate::Problem;

/// A range of the timeline, from creation to drop: this thread's work on one call.
pub(crate) struct Range;

impl Range {
    #[cfg_attr(not(feature = "nvtx"), allow(unused_variables))]
    pub(crate) fn of(problem: &Problem) -> Self {
        #[cfg(feature = "nvtx")]
        nvtx::range_push!("{} {} {} rows", call_name(problem.pass), problem.dtype.name(), problem.rows);
        Self
    }
}

/// The call's name in the timeline.
#[cfg(feature = "nvtx")]
const fn call_name(pass: kron_core::Pass) -> &'static str {
    match pass {
        kron_core::Pass::Forward => "kron_forward",
        kron_core::Pass::Backward { .. } => "kron_backward",
        kron_core::Pass::Merge => "kron_merge",
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        #[cfg(feature = "nvtx")]
        nvtx::range_pop!();
    }
}
