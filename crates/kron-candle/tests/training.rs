//! The optimizer, accumulation and clipping, against candle's own.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Linear, Optimizer, ParamsAdamW};
use kron_candle::{AdamW, Delta, Gradients, Group, KronLinear, KronShape, Layer, ScaleRule, Scaling, Theta};

fn points(device: &Device) -> Result<(Tensor, Var)> {
    let x: Vec<f32> = (0..60).map(|i| ((i * 37 % 61) as f32 - 30.0) / 20.0).collect();
    Ok((Tensor::from_vec(x, (12, 5), device)?, Var::from_slice(&[0.5f32, -0.25, 1.0, 0.0, 2.0], 5, device)?))
}

fn loss(x: &Tensor, w: &Var) -> Result<Tensor> {
    x.matmul(&w.unsqueeze(1)?)?.sin()?.sqr()?.mean_all()
}

#[test]
fn adamw_is_candles_with_its_decay() -> Result<()> {
    common::devices().iter().try_for_each(adamw_is_candles_on)
}

fn adamw_is_candles_on(device: &Device) -> Result<()> {
    let (x, ours) = points(device)?;
    let theirs = Var::from_tensor(&ours.copy()?)?;
    let mut reference = candle_nn::AdamW::new(
        vec![theirs.clone()],
        ParamsAdamW { lr: 0.05, weight_decay: 0.1, ..Default::default() },
    )?;
    let group = Group { decay: 0.1, ..Group::from(ours.clone()) };
    let mut optimizer = AdamW::new(vec![group], Default::default())?;
    for _ in 0..20 {
        reference.backward_step(&loss(&x, &theirs)?)?;
        let mut gradients = Gradients::new(&optimizer.vars());
        gradients.add(&loss(&x, &ours)?.backward()?, 1.0)?;
        optimizer.step(&gradients, 0.05)?;
    }
    let apart = (ours.as_tensor() - theirs.as_tensor())?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(apart < 1e-5, "{apart} apart after 20 steps");
    assert!(ours.to_vec1::<f32>()?[0] != 0.5);
    Ok(())
}

#[test]
fn micro_batches_add_up_to_the_batch() -> Result<()> {
    let (x, w) = points(&Device::Cpu)?;
    let whole = loss(&x, &w)?.backward()?;
    let mut gradients = Gradients::new(std::slice::from_ref(&w));
    for start in [0, 3, 6, 9] {
        gradients.add(&loss(&x.narrow(0, start, 3)?, &w)?.backward()?, 0.25)?;
    }
    let apart = (gradients.get(0).expect("a gradient") - whole.get(&w).expect("a gradient"))?;
    assert!(apart.abs()?.max_all()?.to_scalar::<f32>()? < 1e-6);
    Ok(())
}

#[test]
fn clipping_shortens_what_is_too_long() -> Result<()> {
    let (x, w) = points(&Device::Cpu)?;
    let store = loss(&x, &w)?.backward()?;
    let mut gradients = Gradients::new(std::slice::from_ref(&w));
    gradients.add(&store, 1.0)?;
    let norm = gradients.norm()?;
    assert!(norm > 0.0 && gradients.clip(2.0 * norm)? == norm && gradients.norm()? == norm);
    gradients.clip(norm / 3.0)?;
    assert!((gradients.norm()? / norm - 1.0 / 3.0).abs() < 1e-5);
    Ok(())
}

/// Adam's first step is the rate times the sign of the gradient, whatever its size.
#[test]
fn each_factor_has_its_rate() -> Result<()> {
    common::devices().iter().try_for_each(each_factor_has_its_rate_on)
}

fn each_factor_has_its_rate_on(device: &Device) -> Result<()> {
    let shapes =
        [KronShape::kron(12, 10, 3, 2, 2), KronShape::lora(12, 10, 2), KronShape::krona(12, 10, 3, 2)];
    for shape in shapes.map(|s| s.expect("legal")) {
        let scaling = Scaling::new(4.0, 2, ScaleRule::AlphaOverR).expect("legal");
        let delta = Delta::new("m", shape, scaling, 3, device)?;
        let before = delta.theta().to_vec1::<f32>()?;
        let theta = delta.theta().clone();
        let group = Group { rates: Some(delta.rates(8.0)?), ..Group::from(theta.clone()) };
        let mut optimizer = AdamW::new(vec![group], Default::default())?;
        let mut gradients = Gradients::new(&optimizer.vars());
        gradients.add(&theta.sum_all()?.backward()?, 1.0)?;
        optimizer.step(&gradients, 1e-3)?;
        let zero_first = if shape.rank().is_some() { shape.b_len() } else { shape.c_len() };
        for (i, (now, before)) in theta.to_vec1::<f32>()?.iter().zip(before).enumerate() {
            let fast = (shape.a_len()..shape.a_len() + zero_first).contains(&i);
            let want = if fast { 8e-3 } else { 1e-3 };
            assert!((before - now - want).abs() < 1e-6, "number {i} of {shape} moved by {}", before - now);
        }
    }
    Ok(())
}

/// What a planted adapter does is learned on every device, in every type of activations.
#[test]
fn a_planted_adapter_is_learned() -> Result<()> {
    let shape = KronShape::kron(12, 10, 3, 2, 2).expect("legal");
    let scaling = Scaling::new(4.0, 2, ScaleRule::AlphaOverR).expect("legal");
    for device in common::devices() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let planted = Layer::new("m", scaling, Theta::random(shape, 7)).expect("legal");
            let x: Vec<f32> = (0..64 * 10).map(|i| ((i * 37 % 61) as f32 - 30.0) / 20.0).collect();
            let x = Tensor::from_vec(x, (64, 10), &device)?.to_dtype(dtype)?;
            let base = Linear::new(Tensor::zeros((12, 10), dtype, &device)?, None);
            let want = KronLinear::new(base.clone(), Delta::from_layer(&planted, &device)?)?;
            let want = want.forward(&x, None)?.to_dtype(DType::F32)?.detach();
            let delta = Delta::new("m", shape, scaling, 3, &device)?;
            let layer = KronLinear::new(base, delta.clone())?;
            let mut optimizer = AdamW::new(vec![Group::from(delta.theta().clone())], Default::default())?;
            let mut losses = Vec::new();
            for _ in 0..200 {
                let loss = (layer.forward(&x, None)?.to_dtype(DType::F32)? - &want)?.sqr()?.mean_all()?;
                losses.push(loss.to_scalar::<f32>()?);
                let mut gradients = Gradients::new(&optimizer.vars());
                gradients.add(&loss.backward()?, 1.0)?;
                optimizer.step(&gradients, 2e-2)?;
            }
            let (first, last) = (losses[0], losses[losses.len() - 1]);
            assert!(last < 0.05 * first, "{:?}, {dtype:?}: {first} → {last}", device.location());
        }
    }
    Ok(())
}
