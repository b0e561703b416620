//! The roof: the device's copy bandwidth and multiply-add rates.

use std::rc::Rc;

use kron_adapter::with_dtype;
use kron_core::{Dtype, Result};

use super::buffer::Buffer;
use super::gpu::{Device, DeviceBuffer, Extent, Number, failed};
use super::lt::{CublasLt, type_of};
use super::product::{Operand, Product};
use crate::data::{flat, uniform};
use crate::record::{Rate, Roof};

/// Measures the best of five copies, and of five products of random matrices in each dtype.
pub fn measure(
    device: &mut Device,
    library: &Rc<CublasLt>,
    dtypes: &[Dtype],
    extent: Extent,
) -> Result<Roof> {
    fn flops<E: Number>(device: &mut Device, library: &Rc<CublasLt>, size: usize) -> Result<f64> {
        let random = |seed| device.upload(flat(&uniform::<E>(size, size, 1.0, seed)));
        let data = [
            DeviceBuffer::Own(random(1)?),
            DeviceBuffer::Own(random(2)?),
            DeviceBuffer::Own(device.zeros::<E>(size * size)?),
        ];
        let [x, w, y] = [Buffer::X, Buffer::W, Buffer::Y].map(|b| Operand::new(b, size));
        let product = Product::new((size, size, size), x, w, y);
        product.check(|_| size * size)?;
        let mut planned = library.plan(&product, [type_of(E::DTYPE); 3])?;
        let at = data.each_ref().map(|m| m.start(device));
        // SAFETY: `check` checked the product against the buffers, which outlive the work.
        unsafe { planned.tune(device, at) }?;
        let once = || {
            // SAFETY: as above.
            device.time(|| unsafe { planned.run(at) })
        };
        Ok(2.0 * (size as f64).powi(3) / best(once)?)
    }
    let (from, mut to) = (device.zeros::<u8>(extent.copy)?, device.zeros::<u8>(extent.copy)?);
    let copy = best(|| {
        device.time(|| device.stream.memcpy_dtod(&from, &mut to).map_err(failed("a copy on the device")))
    })?;
    let rate = |&dtype: &Dtype| {
        let flops_per_s = with_dtype!(dtype, E => flops::<E>(device, library, extent.product))?;
        Ok(Rate { dtype: dtype.to_string(), flops_per_s })
    };
    Ok(Roof {
        copy_bytes_per_s: 2.0 * extent.copy as f64 / copy,
        flops_per_s: dtypes.iter().map(rate).collect::<Result<_>>()?,
    })
}

fn best(mut seconds: impl FnMut() -> Result<f64>) -> Result<f64> {
    (0..5).try_fold(f64::INFINITY, |least, _| Ok(least.min(seconds()?)))
}
