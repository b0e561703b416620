//! GELU.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::composed;
use super::exp::exp;
use super::slices::{floats, is_fusable, like, map_rows, read};

/// Computes x·Φ(x), with the error function.
///
/// # Errors
/// candle fails.
pub(in crate::models) fn gelu(x: &Tensor) -> Result<Tensor> {
    if is_fusable(&[x]) { x.contiguous()?.apply_op1(Gelu) } else { composed::gelu(x) }
}

struct Gelu;

/// Number of elements that are computed at a time.
const PART: usize = 1024;

/// Factor of exp(−x²/2) in the derivative of Φ, 1/√(2π).
pub(super) const DENSITY: f32 = 0.398_942_3;

/// Returns Φ(x), by Abramowitz and Stegun 7.1.26 with an error below 1.5e-7, and exp(−x²/2).
#[inline(always)]
pub(super) fn normal(x: f32) -> (f32, f32) {
    let gauss = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs() * std::f32::consts::FRAC_1_SQRT_2);
    let poly =
        t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
    let upper = 0.5 * poly * gauss;
    (if x < 0.0 { upper } else { 1.0 - upper }, gauss)
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(storage, layout)?;
        let y = map_rows(
            [x],
            PART,
            #[inline(always)]
            |y, [x]| y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * normal(x).0),
        );
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (given, dy) = (read(x)?, read(&dy)?);
        let dx = map_rows(
            [&given, &dy],
            PART,
            #[inline(always)]
            |dx, [x, dy]| {
                for ((dx, &x), dy) in dx.iter_mut().zip(x).zip(dy) {
                    let (phi, gauss) = normal(x);
                    *dx = dy * (phi + x * DENSITY * gauss);
                }
            },
        );
        like(dx, x).map(Some)
    }
}
