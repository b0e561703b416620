//! Ranges of the numbers in a model's configuration, wide enough for every known model.
//!
//! With these, no product of two sizes overflows, and nothing is allocated before a tensor has the size.

use candle_core::{Error, Result};

/// Largest number of token ids.
pub(super) const VOCABULARY: usize = 1 << 24;
/// Largest width of a layer.
pub(super) const WIDTH: usize = 1 << 20;
/// Largest number of blocks, and of heads.
pub(super) const COUNT: usize = 1 << 14;
/// Largest number of positions.
pub(super) const POSITIONS: usize = 1 << 30;

/// Fails if a size is 0 or above its limit.
pub(super) fn check_sizes(sizes: &[(&str, usize, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size, most)| !(1..=*most).contains(size)) {
        Some((name, size, most)) => {
            Err(Error::msg(format!("{name} is {size}, but it is an integer from 1 to {most}")))
        }
        None => Ok(()),
    }
}

/// Returns a number that lies in a range, both ends included; NaN lies in none.
pub(super) fn within(name: &str, value: f64, low: f64, high: f64) -> Result<f64> {
    match (low..=high).contains(&value) {
        true => Ok(value),
        false => Err(Error::msg(format!("{name} is {value:?}, but it is a number from {low:?} to {high:?}"))),
    }
}

/// Fails if the term added to a variance is not positive in float32, or above 1.
pub(super) fn check_eps(name: &str, eps: f64) -> Result<()> {
    within(name, eps, 1e-30, 1.0).map(drop)
}
