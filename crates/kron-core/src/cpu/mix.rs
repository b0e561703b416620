//! The products with A and Aᵀ, and their place among the products.
//!
//! A first: U = A·T over a whole block, then U·Bᵀ. A last: V = T·Bᵀ over a few tokens, then A·V,
//! where V has a_in rows for U's a_out.

use crate::simd::{Groups, Kernels, PackFor, RowGridMut};
use crate::{Accum, KronShape};

/// Elements of V that stay in L1 while A meets them.
const V_ELEMENTS: usize = 4096;

/// Returns true if A comes last in forward: with a full inner factor, where T is V, and where it takes fewer
/// multiply-adds and V of a token is short.
pub(super) fn a_is_last(s: &KronShape) -> bool {
    is_last_within(s, V_ELEMENTS)
}

/// Returns true if A is last in forward and first in backward, where Z, a row of dY and the gradients of A and B are in
/// the cache beside V.
pub(super) fn a_is_first_back(s: &KronShape) -> bool {
    is_last_within(s, V_ELEMENTS / 4)
}

fn is_last_within(s: &KronShape, elements: usize) -> bool {
    let fewer = |r| s.a_in() * (r + s.a_out()) < s.a_out() * r;
    s.rank().is_none_or(|r| fewer(r) && s.a_in() * s.b_out() <= elements)
}

/// Tokens whose V is computed at a time.
pub(super) fn v_tokens(s: &KronShape) -> usize {
    (V_ELEMENTS / (s.a_in() * s.b_out())).max(1)
}

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

#[cfg(test)]
mod tests {
    use crate::{Inner, KronShape, LayerDims, Outer, Split};

    #[test]
    fn a_thin_a_is_last() {
        let last = |a_out: usize, a_in: usize, outer, inner| {
            let layer = LayerDims { d_out: 64 * a_out, d_in: 48 * a_in };
            super::a_is_last(&KronShape::new(layer, Split { a_out, a_in }, outer, inner).expect("legal"))
        };
        let (trained, low_rank) = (Outer::Trained, Inner::LowRank);
        assert!(last(16, 2, trained, low_rank(8)), "2·(8 + 16) < 16·8");
        assert!(!last(16, 2, trained, low_rank(2)), "2·(2 + 16) > 16·2");
        assert!(!last(2, 16, trained, low_rank(8)), "16·(8 + 2) > 2·8");
        assert!(!last(1, 1, Outer::One, low_rank(8)), "LoRA has no A");
        assert!(last(2, 16, trained, Inner::Full), "T is V");
        let wide = |b_out: usize| {
            let layer = LayerDims { d_out: 16 * b_out, d_in: 96 };
            let shape = KronShape::kron(layer, Split { a_out: 16, a_in: 2 }, 8).expect("legal");
            (super::a_is_last(&shape), super::a_is_first_back(&shape))
        };
        assert_eq!(
            [512, 513, 2048, 2049].map(wide),
            [(true, true), (true, false), (true, false), (false, false)]
        );
    }
}
