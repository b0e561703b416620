//! Names in a profiler's timeline, by NVTX. Does nothing without the feature `nvtx`.

use crate::Problem;

/// A range of the timeline, from creation to drop: this thread's work on one call.
pub(crate) struct Range;

impl Range {
    #[cfg_attr(not(feature = "nvtx"), allow(unused_variables))]
    pub(crate) fn of(problem: &Problem) -> Self {
        #[cfg(feature = "nvtx")]
        nvtx::range_push!("{} {} {} rows", problem.pass.name(), problem.dtype.name(), problem.rows);
        Self
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        #[cfg(feature = "nvtx")]
        nvtx::range_pop!();
    }
}
