//! The CPU backend.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::{Accum, Backend, Backward, Forward, Merge, Pass};
use crate::{Element, KronOp, Result, Theta, reference};

/// An instruction set of this backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Any CPU.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, VL.
    Avx512,
    /// AVX-512 with BF16 dot products.
    Avx512Bf16,
}

/// Forward, backward and merge on the host, over rayon's current thread pool.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    isa: Isa,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// The best instruction set of this machine.
    pub fn new() -> Self {
        Self { isa: Isa::Portable }
    }
    /// A given instruction set.
    ///
    /// # Errors
    /// One that this machine lacks.
    pub fn with_isa(isa: Isa) -> Result<Self> {
        Ok(Self { isa })
    }
    /// The instruction set in use.
    pub const fn isa(&self) -> Isa {
        self.isa
    }
}

fn up<E: Element>(v: ArrayView2<E>) -> Array2<f64> {
    v.map(|v| v.to_f32().into())
}
fn put<E: Element>(mut y: ArrayViewMut2<E>, v: &Array2<f64>, accum: Accum) {
    ndarray::Zip::from(&mut y).and(v).for_each(|y, &v| {
        let old = if accum == Accum::Add { y.to_f32() as f64 } else { 0.0 };
        *y = E::from_f32((old + v) as f32)
    });
}

impl Backend for Cpu {
    type Rows<'a, E: Element> = ArrayView2<'a, E>;
    type RowsMut<'a, E: Element> = ArrayViewMut2<'a, E>;
    type Floats<'a> = &'a [f32];
    type FloatsMut<'a> = &'a mut [f32];

    fn workspace_len(&self, _op: &KronOp, _pass: Pass, _rows: usize) -> usize {
        1
    }
    fn forward<E: Element>(&self, op: &KronOp, c: Forward<'_, Self, E>) -> Result<()> {
        let theta = Theta::from_vec(op.shape, c.theta.to_vec())?;
        put(c.y, &reference::forward(op, &theta, up(c.x).view()), c.accum);
        Ok(())
    }
    fn backward<E: Element>(&self, op: &KronOp, c: Backward<'_, Self, E>) -> Result<()> {
        let theta = Theta::from_vec(op.shape, c.theta.to_vec())?;
        let g = reference::backward(op, &theta, up(c.x).view(), up(c.dy).view());
        for (o, g) in c.grad.iter_mut().zip(&g.theta) {
            *o += *g as f32;
        }
        if let Some((dx, accum)) = c.dx {
            put(dx, &g.dx, accum);
        }
        Ok(())
    }
    fn merge<E: Element>(&self, op: &KronOp, c: Merge<'_, Self, E>) -> Result<()> {
        let theta = Theta::from_vec(op.shape, c.theta.to_vec())?;
        let rows = c.w.nrows();
        let w = reference::delta_weight(op, &theta);
        let w = w.slice(ndarray::s![c.first_row..c.first_row + rows, ..]).to_owned();
        put(c.w, &w, c.accum);
        Ok(())
    }
}
