//! Put an adapter on one linear layer; forward, backward, dropout, merge.
//!
//!     cargo run -p kron-candle --example 01_linear

use std::error::Error;

use candle_core::{Device, Module, Tensor};
use candle_nn::Linear;
use kron_candle::{
    Dropout, DropoutKey, KronLinear, KronShape, Layer, LayerDims, ScaleRule, Scaling, Split, Theta,
    TrainableDelta,
};

fn main() -> Result<(), Box<dyn Error>> {
    let (params, plain, norm) = linear()?;
    println!("{params} trained parameters instead of {plain}; the gradient of θ has norm {norm:.3}");
    Ok(())
}

/// Returns the adapter's parameters, those of the plain layer, and the norm of θ's gradient.
pub fn linear() -> Result<(usize, usize, f32), Box<dyn Error>> {
    // 1. A frozen layer of 96 → 64, and an adapter ΔW = (32/8)·A ⊗ (B·C): A is 4×2, r is 8.
    let device = Device::Cpu;
    let weight = Tensor::randn(0f32, 0.1, (64, 96), &device)?;
    let base = Linear::new(weight, Some(Tensor::randn(0f32, 0.1, 64, &device)?));
    let dims = LayerDims { d_out: 64, d_in: 96 };
    let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 8)?;
    let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?;

    // 2. A new adapter has ΔW = 0, so the layer computes the base's output.
    let x = Tensor::randn(0f32, 1.0, (5, 96), &device)?;
    let new = TrainableDelta::new("layer.0", shape, scaling, 1, &device)?;
    let layer = KronLinear::new(base.clone(), new)?;
    assert!(difference(&layer.forward_with(&x, None)?, &base.forward(&x)?)? < 1e-5);

    // 3. With random factors the output differs; `TrainableDelta::from_layer` takes those of a trained adapter.
    let random = Layer::new("layer.0", scaling, Theta::random(shape, 1))?;
    let delta = TrainableDelta::from_layer(&random, &device)?;
    let layer = KronLinear::new(base.clone(), delta.clone())?;
    let y = layer.forward_with(&x, None)?;
    assert_eq!(y.dims(), [5, 64]);
    assert!(difference(&y, &base.forward(&x)?)? > 1e-2);

    // 4. Backward: θ = [A | B | C] is one variable with one gradient; the base is frozen.
    let gradients = y.sqr()?.mean_all()?.backward()?;
    let gradient = gradients.get(delta.theta()).expect("a gradient of θ");
    assert_eq!(gradient.dims(), [shape.params()]);
    let norm = gradient.sqr()?.sum_all()?.sqrt()?.to_scalar()?;

    // 5. Dropout on the adapter's input is an argument of the call: equal keys give equal masks.
    let dropped = KronLinear::new(base, delta.with_dropout(Dropout::new(0.5)?))?;
    let key = DropoutKey { seed: 7, offset: 0 };
    let (first, again) = (dropped.forward_with(&x, Some(key))?, dropped.forward_with(&x, Some(key))?);
    assert!(difference(&first, &again)? == 0.0 && difference(&first, &y)? > 0.0);

    // 6. Merged, the layer is a plain one again, with the same output.
    let merged = layer.merge()?;
    assert!(difference(&merged.forward(&x)?, &y)? < 1e-3);
    Ok((shape.params(), 64 * 96, norm))
}

fn difference(a: &Tensor, b: &Tensor) -> candle_core::Result<f32> {
    (a - b)?.abs()?.max_all()?.to_scalar()
}
