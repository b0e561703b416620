//! The counting allocator of every program that links this crate.

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Runs `work` and returns the peak of the bytes allocated meanwhile, beyond those before.
pub fn peak_during<R>(work: impl FnOnce() -> R) -> (R, usize) {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let result = work();
    (result, ALLOCATOR.peak_usage().saturating_sub(before))
}

/// Runs `work` and returns the increase in allocated bytes.
pub fn kept_by<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = ALLOCATOR.current_usage();
    let result = work();
    (result, ALLOCATOR.current_usage().saturating_sub(before))
}
