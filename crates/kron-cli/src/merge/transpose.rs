//! Factors of a transposed ΔW.

use kron_core::{Inner, KronShape, LayerDims, Outer, Split, Theta};

/// Returns the factors of the transposed ΔW.
pub fn transpose(theta: &Theta) -> kron_core::Result<Theta> {
    let shape = theta.shape();
    let a = match shape.outer() {
        Outer::Trained => transposed_matrix(theta.a(), shape.a_in()),
        Outer::One => Vec::new(),
    };
    match shape.inner() {
        Inner::LowRank(r) => {
            let (b, c) = (transposed_matrix(theta.c(), shape.c_in()), transposed_matrix(theta.b(), r));
            Theta::from_factors(transposed(shape)?, &a, &b, &c)
        }
        Inner::Full => {
            Theta::from_factors(transposed(shape)?, &a, &[], &transposed_matrix(theta.c(), shape.c_in()))
        }
    }
}

fn transposed_matrix(m: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|j| m.iter().skip(j).step_by(columns).copied()).collect()
}

/// Returns the shape of the transposed ΔW.
fn transposed(shape: &KronShape) -> kron_core::Result<KronShape> {
    KronShape::new(
        LayerDims { d_out: shape.d_in(), d_in: shape.d_out() },
        Split { a_out: shape.a_in(), a_in: shape.a_out() },
        shape.outer(),
        shape.inner(),
    )
}
