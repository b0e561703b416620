//! Layers of every kind for this module's tests.

use kron_core::{Inner, KronShape, LayerDims, Outer, Split, Theta};
use ndarray::Array2;

use super::delta::Delta;

/// Returns ΔW, element by element.
pub(super) fn materialised(delta: &Delta) -> Array2<f64> {
    let inner = delta.b.dot(&delta.c);
    let (b_out, c_in) = inner.dim();
    Array2::from_shape_fn(delta.dim(), |(o, i)| {
        delta.scale * delta.a[(o / b_out, i / c_in)] * inner[(o % b_out, i % c_in)]
    })
}

/// Returns layers of pairwise different sizes: either side longer, full inner factors, LoRA.
pub(super) fn deltas() -> Vec<Delta> {
    let shapes = [
        KronShape::kron(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 5, a_in: 3 }, 4),
        KronShape::kron(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 2, a_in: 7 }, 3),
        KronShape::krona(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 5, a_in: 6 }),
        KronShape::krona(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 12, a_in: 2 }),
        KronShape::lora(LayerDims { d_out: 60, d_in: 42 }, 5),
        KronShape::new(
            LayerDims { d_out: 60, d_in: 42 },
            Split { a_out: 1, a_in: 1 },
            Outer::One,
            Inner::Full,
        ),
        KronShape::kron(LayerDims { d_out: 60, d_in: 42 }, Split { a_out: 30, a_in: 21 }, 1),
    ];
    let thetas = shapes.into_iter().zip(1..).map(|(shape, seed)| (Theta::random(shape.unwrap(), seed), seed));
    thetas.map(|(theta, seed)| Delta::of(0.75 - seed as f64, &theta)).collect()
}
