//! [`Problem`]: the input of a plan.

use kron_core::{Dtype, Error, KronShape, Pass, Result};

/// One call's sizes and alignment; a plan depends on nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Sizes of the factors.
    pub shape: KronShape,
    /// Element type of the activations.
    pub dtype: Dtype,
    /// Forward, backward or merge.
    pub pass: Pass,
    /// Tokens; rows of W in a merge.
    pub rows: usize,
    /// True if Y, dX or W is added to, false if it is replaced.
    pub accumulate: bool,
    /// True if θ and every row of activations start on a 16-byte boundary.
    pub aligned: bool,
}

/// Refuses rows whose activations, or T, have more elements than 64-bit byte offsets reach.
pub(crate) fn check_rows(shape: &KronShape, rows: usize) -> Result<()> {
    const LIMIT: usize = isize::MAX as usize / 8;
    let widest = [shape.d_out(), shape.d_in(), shape.t_row(), shape.a_out() * shape.width()];
    let widest = widest.into_iter().max().unwrap_or(1);
    if rows.checked_mul(widest).is_some_and(|elements| elements <= LIMIT) {
        return Ok(());
    }
    Err(Error::Shape(format!(
        "{rows} rows of {widest} elements are more than the limit of {LIMIT} elements on a device ({shape})"
    )))
}

/// Refuses a call over segments whose rows exceed the kernels' 32-bit integers.
pub(crate) fn check_segments(shape: &KronShape, rows: usize, slots: usize) -> Result<()> {
    const LIMIT: usize = 1 << 30;
    let blocks = shape.a_out().max(shape.a_in());
    // A kernel counts the rows (token, block) of a segment, and at least 128 in a tile.
    if rows.max(128).checked_mul(blocks).is_none_or(|count| count > LIMIT) {
        return Err(Error::Shape(format!(
            "{rows} rows of {blocks} blocks are more than the limit of {LIMIT} blocks in a call over segments ({shape})"
        )));
    }
    if slots == 0 || slots > LIMIT {
        return Err(Error::Value(format!("the pool has {slots} slots, but it has 1 to {LIMIT}")));
    }
    Ok(())
}

/// Refuses sizes and products of sizes above 2³¹ − 1, which the kernels' 32-bit integers cannot hold.
pub(crate) fn check_sizes(shape: &KronShape) -> Result<()> {
    const LIMIT: usize = i32::MAX as usize;
    // No product overflows: a `KronShape` limits each of them.
    let (a_out, a_in, rank) = (shape.a_out(), shape.a_in(), shape.width());
    let sizes = [
        ("a_out", a_out),
        ("a_in", a_in),
        ("b_out", shape.b_out()),
        ("c_in", shape.c_in()),
        ("rank", rank),
        ("a_out·a_in", a_out * a_in),
        ("d_out = a_out·b_out", shape.d_out()),
        ("d_in = a_in·c_in", shape.d_in()),
        ("a_out·rank", a_out * rank),
        ("a_in·rank", a_in * rank),
        ("b_out·rank", shape.b_out() * rank),
        ("rank·c_in", rank * shape.c_in()),
    ];
    match sizes.into_iter().find(|&(_, size)| size > LIMIT) {
        None => Ok(()),
        Some((name, size)) => {
            Err(Error::Shape(format!("{name} is {size}, but a size on a device is 1 to {LIMIT}")))
        }
    }
}
