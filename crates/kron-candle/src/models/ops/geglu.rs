//! GeGLU's product (arXiv 2002.05202), of one layer's output.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::composed;
use super::gelu::{DENSITY, normal};
use super::slices::{floats, is_fusable, like, read};
use super::vectors::vectorised;

/// Smallest number of rows of one task.
const ROWS: usize = 8;

/// Computes gelu(a)·b, … × width, of the halves of x, … × 2·width, a before b.
///
/// # Errors
/// The last dimension is odd, or candle fails.
pub(in crate::models) fn geglu(x: &Tensor) -> Result<Tensor> {
    if !x.dim(D::Minus1)?.is_multiple_of(2) {
        bail!("a gated layer is {:?}, but its last dimension has two halves", x.shape());
    }
    if is_fusable(&[x]) { x.contiguous()?.apply_op1(Geglu) } else { composed::geglu(x) }
}

struct Geglu;

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, mut dims) = (floats(x, layout)?, layout.dims().to_vec());
        let width = dims.last().copied().unwrap_or_default() / 2;
        if let Some(last) = dims.last_mut() {
            *last = width;
        }
        let mut y = vec![0.0; x.len() / 2];
        let rows = y.par_chunks_mut(width.max(1)).zip(x.par_chunks(2 * width.max(1)));
        rows.with_min_len(ROWS).for_each(|(y, x)| {
            let (a, b) = x.split_at(width);
            vectorised!(y.iter_mut().zip(a).zip(b).for_each(|((y, &a), b)| *y = a * normal(a).0 * b));
        });
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (dy, width) = (dy.contiguous()?, (x.dim(D::Minus1)? / 2).max(1));
        let (given, dy) = (read(x)?, read(&dy)?);
        let mut dx = vec![0.0; given.len()];
        let rows = dx.par_chunks_mut(2 * width).zip(given.par_chunks(2 * width)).zip(dy.par_chunks(width));
        rows.with_min_len(ROWS).for_each(|((dx, x), dy)| {
            let ((da, db), (a, b)) = (dx.split_at_mut(width), x.split_at(width));
            vectorised!({
                for ((((da, db), &a), b), dy) in da.iter_mut().zip(db.iter_mut()).zip(a).zip(b).zip(dy) {
                    let (phi, gauss) = normal(a);
                    *da = dy * b * (phi + a * DENSITY * gauss);
                    *db = dy * a * phi;
                }
            });
        });
        like(dx, x).map(Some)
    }
}
