//! Checks of a call's buffers against its shape.

use kron_core::{Element, Error, KronShape, Result};

use crate::device::DeviceSlice;
use crate::problem::check_sizes;

/// Returns true if θ, T, scratch and each row of each matrix start on 16-byte boundaries; a null pointer counts as one.
pub(crate) fn aligned<E: Element>(floats: [u64; 3], matrices: &[(u64, usize)]) -> bool {
    let fits = |&(pointer, stride): &(u64, usize)| {
        pointer.is_multiple_of(16) && (stride * E::DTYPE.size()).is_multiple_of(16)
    };
    floats.iter().all(|pointer| pointer.is_multiple_of(16)) && matrices.iter().all(fits)
}

/// Returns the address of a buffer, 0 of an empty one.
pub(crate) fn address(len: usize, pointer: u64) -> u64 {
    if len == 0 { 0 } else { pointer }
}

/// Fails if a size exceeds the kernels' integers or θ has another length; returns its address.
pub(crate) fn theta(shape: &KronShape, theta: DeviceSlice<'_, f32>) -> Result<u64> {
    check_sizes(shape)?;
    theta_len("theta", theta.len(), shape)?;
    Ok(theta.pointer())
}

/// Fails unless a buffer is as long as θ.
pub(crate) fn theta_len(what: &'static str, len: usize, shape: &KronShape) -> Result<()> {
    if len == shape.params() {
        return Ok(());
    }
    let rule = format!(
        "[A | B | C] is {} + {} + {} = {}",
        shape.a_len(),
        shape.b_len(),
        shape.c_len(),
        shape.params()
    );
    Err(Error::Buffer { what, got: format!("{len} elements"), rule })
}

/// Fails if a buffer is shorter than `need`.
pub(crate) fn len(what: &'static str, len: usize, need: usize) -> Result<()> {
    if len >= need {
        return Ok(());
    }
    Err(Error::Buffer { what, got: format!("{len} elements"), rule: format!("this call needs {need}") })
}

/// Fails unless a matrix has as many rows as X.
pub(crate) fn row_count(what: &'static str, rows: usize, n: usize) -> Result<()> {
    if rows == n {
        return Ok(());
    }
    Err(Error::Buffer { what, got: format!("{rows} rows"), rule: format!("x has {n}") })
}

/// Fails unless `rows` rows of `width` elements fit; returns the stride.
pub(crate) fn rows(
    what: &'static str,
    len: usize,
    rows: usize,
    width: usize,
    stride: usize,
) -> Result<usize> {
    if stride < width {
        let rule = format!("its rows have {width} elements");
        return Err(Error::Buffer { what, got: format!("a stride of {stride}"), rule });
    }
    if rows > 0 && len < size(what, rows - 1, stride)?.saturating_add(width) {
        let rule = format!("{rows} rows of {width}, {stride} apart, need more");
        return Err(Error::Buffer { what, got: format!("{len} elements"), rule });
    }
    Ok(stride)
}

/// Returns rows·width, or fails if 64-bit byte offsets cannot reach that many elements.
pub(crate) fn size(what: &'static str, rows: usize, width: usize) -> Result<usize> {
    rows.checked_mul(width).filter(|&n| n <= isize::MAX as usize / 8).ok_or_else(|| Error::Buffer {
        what,
        got: format!("{rows} rows of {width}"),
        rule: format!("a buffer has at most {} elements", isize::MAX as usize / 8),
    })
}
