//! The roof: what the device copies and multiplies at best.

use half::{bf16, f16};
use kron_core::{Dtype, Result};

use super::gpu::{Device, Memory, Number, failed};
use super::lt::{self, type_of};
use super::product::{Operand, Product};
use super::program::Buffer;
use crate::data::{flat, uniform};
use crate::record::{Rate, Roof};

/// Rows and columns of the product that measures the roof.
const ROOF: usize = 8192;
/// Bytes of the copy that measures it.
const COPY: usize = 1 << 30;

/// The best of five copies, and of five products of random numbers in each dtype.
pub fn measure(device: &mut Device, dtypes: &[Dtype]) -> Result<Roof> {
    fn flops<E: Number>(device: &mut Device) -> Result<f64> {
        let random = |seed| device.upload(flat(&uniform::<E>(ROOF, ROOF, 1.0, seed)));
        let data =
            [Memory::Own(random(1)?), Memory::Own(random(2)?), Memory::Own(device.zeros::<E>(ROOF * ROOF)?)];
        let [x, w, y] = [Buffer::X, Buffer::W, Buffer::Y].map(|b| Operand::new(b, ROOF));
        let product = Product::new((ROOF, ROOF, ROOF), x, w, y);
        product.check(|_| ROOF * ROOF)?;
        let mut planned = device.lt.plan(&product, [type_of(E::DTYPE); 3])?;
        let at = data.each_ref().map(|m| m.start(device));
        // SAFETY: `check` held the product against the buffers, which outlive the work.
        unsafe { lt::choose(device, &mut planned, &product, at) }?;
        let once = || {
            // SAFETY: as above.
            device.time(|| unsafe { device.lt.run(&planned, &product, at) })
        };
        Ok(2.0 * (ROOF as f64).powi(3) / best(once)?)
    }
    let (from, mut to) = (device.zeros::<u8>(COPY)?, device.zeros::<u8>(COPY)?);
    let copy = best(|| {
        device.time(|| device.stream.memcpy_dtod(&from, &mut to).map_err(failed("a copy on the device")))
    })?;
    let rate = |&dtype: &Dtype| {
        let flops_per_s = match dtype {
            Dtype::F32 => flops::<f32>(device),
            Dtype::F16 => flops::<f16>(device),
            Dtype::Bf16 => flops::<bf16>(device),
        }?;
        Ok(Rate { dtype: dtype.to_string(), flops_per_s })
    };
    Ok(Roof {
        copy_bytes_per_s: 2.0 * COPY as f64 / copy,
        flops_per_s: dtypes.iter().map(rate).collect::<Result<_>>()?,
    })
}

fn best(mut seconds: impl FnMut() -> Result<f64>) -> Result<f64> {
    (0..5).try_fold(f64::INFINITY, |least, _| Ok(least.min(seconds()?)))
}
