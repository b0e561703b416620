//! [`Accum`]: overwrite an output or add to it.

/// Treatment of an output's old contents.
///
/// `Add` serves a frozen layer: Y holds the layer's own output, and the adapter's is added.
///
/// ```
/// use kron_core::{Accum, Backend, Cpu, KronOp, KronShape, LayerDims, Merge, Pass, Scale, Theta};
/// use ndarray::Array2;
///
/// let shape = KronShape::lora(LayerDims { d_out: 1, d_in: 2 }, 1)?;
/// let (op, cpu) = (KronOp::new(shape, Scale::new(1.0)?), Cpu::new());
/// let theta = Theta::from_factors(shape, &[], &[2.0], &[1.0, 3.0])?; // ΔW = [2, 6]
/// let mut workspace = vec![0.0; cpu.workspace_len(&op, Pass::Merge, 1)];
/// for (accum, want) in [(Accum::Add, [12.0, 16.0]), (Accum::Replace, [2.0, 6.0])] {
///     let mut w = Array2::from_elem((1, 2), 10.0_f32);
///     cpu.merge(&op, Merge {
///         theta: theta.as_slice(), w: w.view_mut(), first_row: 0, accum, workspace: &mut workspace,
///     })?;
///     assert_eq!(w.as_slice(), Some(&want[..]));
/// }
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accum {
    /// Overwrites the output; its old contents are never read.
    Replace,
    /// Adds the result to the output, with one rounding.
    Add,
}
