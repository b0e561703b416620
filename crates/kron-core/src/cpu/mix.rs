//! The products with A and Aᵀ, over T and dU by blocks.

use crate::Accum;
use crate::simd::{Groups, Kernels, PackFor, RowGridMut};

/// Copies \[n, a, r\] to \[a, n, r\]. The values of a block are then adjacent for all
/// tokens, and A multiplies full registers for any rank.
pub(super) fn blocks_first(t: &[f32], (n, a, r): (usize, usize, usize), out: &mut [f32]) {
    for (j, out) in out.chunks_exact_mut(n * r).enumerate() {
        for (i, out) in out.chunks_exact_mut(r).enumerate() {
            out.copy_from_slice(&t[(i * a + j) * r..][..r]);
        }
    }
}

/// Computes U\[i\] = Σ_j A_ij·T\[j\] over \[block, n, r\]; without an A, U = T.
pub(super) fn mix(kernels: Kernels, a: Option<Groups>, t: &[f32], u: &mut [f32]) {
    let Some(a) = a else {
        return u.copy_from_slice(t);
    };
    let (k, len) = (kernels.float32(), t.len() / a.ranks());
    let rows = u.len() / len;
    let mut u = RowGridMut::new(u, 1, rows, (rows * len, len), len);
    k.up(&[(a, k.unpacked(PackFor::Up, t, len))], &mut u, Accum::Replace);
}

/// Writes Aᵀ, row-major, of an A of `rows` × `cols`.
pub(super) fn transpose(a: &[f32], (rows, cols): (usize, usize), out: &mut [f32]) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = a[i % rows * cols + i / rows];
    }
}
