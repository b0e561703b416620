//! [`matrix_unit_product`]: a float32 product on the processor's matrix unit.

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::{Accum, Operands};

/// Computes y = x·w, or y += x·w, on the processor's matrix unit; y is m × n, x is m × k and w is k × n.
///
/// The unit (AMX, on Intel's servers since 2023) multiplies bf16 and sums float32. Each float32 number is split into
/// three bf16 numbers whose sum it is, and the products of parts that exceed float32's rounding are summed, so that
/// the result is as accurate as a product in float32, except that numbers below 2⁻¹⁰³ lose bits and subnormal ones
/// count as zeros. It does not depend on the number of threads. Results of a number that is not finite are not finite.
/// bf16 numbers have one part: with them as weights half of the products are left, and one of six if x is rounded to bf16
/// as well.
///
/// Operands that may be rounded to bf16 are also multiplied on processors with AVX-512 BF16 alone, by vector instructions.
///
/// Returns false and leaves y alone where another product has to do it: on processors and systems without the unit,
/// where a dimension is below 32, the sizes do not fit, or neither dimension of y is contiguous.
///
/// `parallel` uses all threads of rayon's current pool. Packing takes up to 7.5 MiB, and 0.94 MiB a thread. With
/// [`Accum::Replace`], y is written and never read.
///
/// ```
/// use kron_core::{Accum, Operands, matrix_unit_product};
/// use ndarray::Array2;
///
/// let (x, w) = (Array2::from_elem((40, 64), 0.1_f32), Array2::from_elem((50, 64), 0.3_f32));
/// let mut y = Array2::zeros((40, 50));
/// if matrix_unit_product(y.view_mut(), Accum::Replace, x.view(), w.t(), Operands::Float32, true) {
///     assert!(y.iter().all(|y| (y - 1.92_f32).abs() < 1e-5));
/// }
/// ```
pub fn matrix_unit_product(
    mut y: ArrayViewMut2<f32>,
    accum: Accum,
    x: ArrayView2<f32>,
    w: ArrayView2<f32>,
    operands: Operands,
    parallel: bool,
) -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::simd::multiply(&mut y, accum, x, w, operands, parallel);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (&mut y, accum, x, w, operands, parallel);
        false
    }
}
