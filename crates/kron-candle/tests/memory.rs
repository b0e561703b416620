//! Allocations of a forward pass of an adapted layer: one y, and little else.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Linear;
use kron_candle::{KronLinear, KronShape, LayerDims, ScaleRule, Scaling, Split, TrainableDelta};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

#[test]
fn there_is_no_second_y() -> Result<()> {
    let (rows, d_out, d_in) = (4096, 512, 64);
    let shape = KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 4, a_in: 2 }, 4).expect("legal");
    let scaling = Scaling::new(8.0, 4, ScaleRule::AlphaOverR).expect("legal");
    let base = Linear::new(Tensor::ones((d_out, d_in), DType::F32, &Device::Cpu)?, None);
    let layer = KronLinear::new(base, TrainableDelta::new("m", shape, scaling, 1, &Device::Cpu)?)?;
    let x = Tensor::ones((rows, d_in), DType::F32, &Device::Cpu)?;
    layer.forward(&x, None)?;

    let _profiler = dhat::Profiler::builder().testing().build();
    let y = layer.forward(&x, None)?;
    let bytes = dhat::HeapStats::get().total_bytes;
    let one = 4 * y.elem_count() as u64;
    assert!(bytes >= one && bytes < one + one / 2, "{bytes} bytes were allocated for a y of {one}");
    Ok(())
}
