//! The flush of the caches before a sample, by reading.
//!
//! A fill would leave its last lines in L2 unwritten, as many as fit there, and their way to memory would fall
//! into the sample. A product reads a wide matrix once and writes a five-hundredth of its bytes.

use std::rc::Rc;

use half::bf16;
use kron_core::Result;

use super::buffer::Buffer;
use super::gpu::{Device, DeviceBuffer};
use super::lt::{CublasLt, Type};
use super::product::{Operand, Product};

/// Rows of A and of C.
const ROWS: usize = 8;
/// Rows of B.
const INNER: usize = 4096;

/// Returns the work that reads `bytes` bytes: C = A·B, where B has them.
///
/// # Errors
/// Fails if the device has too little memory or cuBLASLt refuses the product.
pub fn by_reading(
    device: &Device,
    library: &Rc<CublasLt>,
    bytes: usize,
) -> Result<impl Fn() -> Result<()> + use<>> {
    let cols = bytes / size_of::<bf16>() / INNER;
    let zeros = |len| Ok::<_, kron_core::Error>(DeviceBuffer::<bf16>::Own(device.zeros(len)?));
    let data = [zeros(ROWS * INNER)?, zeros(INNER * cols)?, zeros(ROWS * cols)?];
    let operand = |buffer, width| Operand::new(buffer, width);
    let (a, b, c) = (operand(Buffer::X, INNER), operand(Buffer::W, cols), operand(Buffer::Y, cols));
    let product = Product::new((ROWS, cols, INNER), a, b, c);
    let lens = [(Buffer::X, ROWS * INNER), (Buffer::W, INNER * cols), (Buffer::Y, ROWS * cols)];
    product.check(|buffer| lens.iter().find(|(b, _)| *b == buffer).map_or(0, |(_, len)| *len))?;
    let planned = library.plan(&product, [Type::CUDA_R_16BF; 3])?;
    let at = data.each_ref().map(|memory| memory.start(device));
    Ok(move || {
        let _lives = &data;
        // SAFETY: `check` passed for these buffers, which live as long as this work can be queued.
        unsafe { planned.run(at) }
    })
}
