//! A build without the feature `cuda` has no device.

use crate::record::Record;
use crate::runner::Progress;
use crate::schedule::Schedule;

/// Refuses CUDA device `ordinal`.
///
/// # Errors
/// Always.
pub fn check(ordinal: usize) -> Result<(), String> {
    Err(refusal(ordinal))
}

/// Refuses to measure on CUDA device `ordinal`.
///
/// # Errors
/// Always.
pub fn run(_: &Schedule, ordinal: usize, _: &mut dyn Progress) -> Result<Record, String> {
    Err(refusal(ordinal))
}

fn refusal(ordinal: usize) -> String {
    format!("device is cuda:{ordinal}, but this kron-bench was built without the feature cuda")
}
