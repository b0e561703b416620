//! [`Problem`]: one call's sizes, all that a plan depends on.

use kron_core::{Dtype, Error, KronShape, Pass, Result};

/// One call's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The factors' sizes.
    pub shape: KronShape,
    /// The activations' format.
    pub dtype: Dtype,
    /// Forward, backward or merge.
    pub pass: Pass,
    /// Tokens; rows of W in a merge.
    pub rows: usize,
    /// Add to Y, dX or W instead of replacing it.
    pub accumulate: bool,
    /// Every activation row and θ start on a 16-byte boundary.
    pub aligned: bool,
}

/// Refuses sizes and products of sizes above 2³¹ − 1, which the kernels' 32-bit integers cannot hold.
pub(crate) fn check_sizes(s: &KronShape) -> Result<()> {
    const LIMIT: usize = i32::MAX as usize;
    // No product overflows: a `KronShape` has at most isize::MAX / 16 elements in each of them.
    let (a_out, a_in, rank) = (s.a_out(), s.a_in(), s.width());
    let sizes = [
        ("a_out", a_out),
        ("a_in", a_in),
        ("b_out", s.b_out()),
        ("c_in", s.c_in()),
        ("rank", rank),
        ("a_out·a_in", a_out * a_in),
        ("d_out = a_out·b_out", s.d_out()),
        ("d_in = a_in·c_in", s.d_in()),
        ("a_out·rank", a_out * rank),
        ("a_in·rank", a_in * rank),
        ("b_out·rank", s.b_out() * rank),
        ("rank·c_in", rank * s.c_in()),
    ];
    match sizes.into_iter().find(|&(_, size)| size > LIMIT) {
        None => Ok(()),
        Some((name, size)) => {
            Err(Error::Shape(format!("{name} is {size}, but a size on a device is 1 to {LIMIT}")))
        }
    }
}
