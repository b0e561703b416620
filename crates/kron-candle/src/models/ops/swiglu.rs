//! SwiGLU's product.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::composed;
use super::exp::exp;
use super::slices::{floats, is_fusable, like, read};
use super::vectors::vectorised;

/// Number of elements of one task.
const PART: usize = 8192;

/// Computes silu(gate)·up, with silu(g) = g/(1 + e^−g).
///
/// # Errors
/// The shapes differ, or candle fails.
pub(in crate::models) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match is_fusable(&[gate, up]) {
        true => gate.contiguous()?.apply_op2(&up.contiguous()?, Swiglu),
        false => composed::swiglu(gate, up),
    }
}

/// Returns the gradients of gate and up in [`swiglu`], for contiguous float32 tensors on the CPU.
///
/// # Errors
/// candle fails.
pub(in crate::models) fn swiglu_backward(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<[Tensor; 2]> {
    let dy = dy.contiguous()?;
    let (g, u, dy) = (read(gate)?, read(up)?, read(&dy)?);
    let (mut dgate, mut dup) = (vec![0.0; g.len()], vec![0.0; g.len()]);
    let parts = dgate.par_chunks_mut(PART).zip(dup.par_chunks_mut(PART)).zip(g.par_chunks(PART));
    parts.zip(u.par_chunks(PART)).zip(dy.par_chunks(PART)).for_each(|((((dgate, dup), g), u), dy)| {
        vectorised!({
            for ((((dgate, dup), g), u), dy) in dgate.iter_mut().zip(dup.iter_mut()).zip(g).zip(u).zip(dy) {
                let s = sigmoid(*g);
                *dgate = dy * u * s * (1.0 + g * (1.0 - s));
                *dup = dy * g * s;
            }
        });
    });
    Ok([like(dgate, gate)?, like(dup, up)?])
}

struct Swiglu;

/// Returns 1/(1 + e^−g).
#[inline(always)]
fn sigmoid(g: f32) -> f32 {
    1.0 / (1.0 + exp(-g))
}

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (floats(gate, layout)?, floats(up, up_layout)?);
        let mut y = vec![0.0; gate.len()];
        let parts = y.par_chunks_mut(PART).zip(gate.par_chunks(PART)).zip(up.par_chunks(PART));
        parts.for_each(|((y, gate), up)| {
            vectorised!(y.iter_mut().zip(gate).zip(up).for_each(|((y, g), u)| *y = g * sigmoid(*g) * u));
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dgate, dup] = swiglu_backward(gate, up, dy)?;
        Ok((Some(dgate), Some(dup)))
    }
}
