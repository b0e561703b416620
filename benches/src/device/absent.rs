//! A build without the feature `cuda` has no device, and says so.

use crate::plan::Plan;
use crate::record::Record;
use crate::runner::Progress;

/// That there is such a device to measure on.
///
/// # Errors
/// Always.
pub fn check(ordinal: usize) -> Result<(), String> {
    Err(format!("device is cuda:{ordinal}, but this kron-bench was built without the feature cuda"))
}

/// Measures everything in the plan on CUDA device `ordinal`.
///
/// # Errors
/// Always.
pub fn run(_: &Plan, ordinal: usize, _: &mut dyn Progress) -> Result<Record, String> {
    check(ordinal).and(Err(String::new()))
}
