//! Tensors that follow from their names, so that two models of the same names have the same weights.

use candle_core::{Device, Result, Shape, Tensor};
use kron_core::philox;

/// Returns `count` values in ±1 that follow from a name.
pub fn values(name: &str, count: usize) -> Vec<f32> {
    let seed = name.bytes().fold(7u64, |seed, byte| seed.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
    let key = [seed as u32, (seed >> 32) as u32];
    (0..count as u32).map(|i| philox([i, 0, 0, 0], key)[0] as f32 / (1u32 << 31) as f32 - 1.0).collect()
}

/// Makes a tensor: a matrix of about unit gain, the weight of a norm around 1, or a bias around 0.
pub fn tensor(name: &str, shape: &Shape) -> Result<Tensor> {
    let mut values = values(name, shape.elem_count());
    let width = *shape.dims().last().unwrap_or(&1) as f32;
    let gain = if shape.rank() == 2 { 1.7 / width.sqrt() } else { 0.3 };
    let middle = if name.contains("norm") && name.ends_with(".weight") { 1.0 } else { 0.0 };
    values.iter_mut().for_each(|value| *value = middle + gain * *value);
    Tensor::from_vec(values, shape, &Device::Cpu)
}
