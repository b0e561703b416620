//! The optimizer, accumulation and clipping, against candle's own.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Linear, Optimizer, ParamsAdamW};
use kron_candle::{
    AdamW, Gradients, Group, KronLinear, KronShape, Layer, LayerDims, Part, ScaleRule, Scaling, Split, Theta,
    TrainableDelta,
};

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
    let mut optimizer = AdamW::new(vec![Group::whole(ours.clone(), 1.0, 0.1)?], Default::default())?;
    for _ in 0..20 {
        reference.backward_step(&loss(&x, &theirs)?)?;
        let mut gradients = Gradients::new(&optimizer.vars());
        gradients.add(&loss(&x, &ours)?.backward()?, 1.0)?;
        optimizer.step(&gradients, 0.05)?;
    }
    let difference = (ours.as_tensor() - theirs.as_tensor())?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(difference < 1e-5, "{difference} after 20 steps");
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
    let difference = (gradients.get(0).expect("a gradient") - whole.get(&w).expect("a gradient"))?;
    assert!(difference.abs()?.max_all()?.to_scalar::<f32>()? < 1e-6);
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

/// A part gives the same bits as a variable of its own with the same learning rate and decay.
#[test]
fn parts_are_trained_as_variables_of_their_own() -> Result<()> {
    common::devices().iter().try_for_each(parts_are_trained_on)
}

fn parts_are_trained_on(device: &Device) -> Result<()> {
    let x: Vec<f32> = (0..12).map(|i| ((i * 37 % 61) as f32 - 30.0) / 20.0).collect();
    let target = Tensor::from_iter((0..12).map(|i| (i * 5 % 7) as f32), device)?;
    let loss = |all: &Tensor| (all.sin()? - &target)?.sqr()?.mean_all();
    let parts = [(0..2, 1.0, 0.0), (2..7, 5.0, 0.3), (7..7, 9.0, 0.0), (7..12, 0.5, 0.1)]
        .map(|(range, lr_ratio, decay)| Part { range, lr_ratio, decay });
    // The second part begins and ends within a row.
    let whole = Var::from_slice(&x, (3, 4), device)?;
    let mut one = AdamW::new(vec![Group::new(whole.clone(), parts.to_vec())?], Default::default())?;
    let own = parts.iter().filter(|part| !part.range.is_empty()).map(|part| {
        let var = Var::from_slice(&x[part.range.clone()], part.range.len(), device)?;
        Group::whole(var, part.lr_ratio, part.decay)
    });
    let mut each = AdamW::new(own.collect::<Result<_>>()?, Default::default())?;
    let joined = |vars: &[Var]| Tensor::cat(&vars.iter().map(Var::as_tensor).collect::<Vec<_>>(), 0);
    for _ in 0..5 {
        let mut gradients = Gradients::new(&one.vars());
        gradients.add(&loss(&whole.flatten_all()?)?.backward()?, 1.0)?;
        one.step(&gradients, 0.05)?;
        let mut gradients = Gradients::new(&each.vars());
        gradients.add(&loss(&joined(&each.vars())?)?.backward()?, 1.0)?;
        each.step(&gradients, 0.05)?;
    }
    let trained = whole.flatten_all()?.to_vec1::<f32>()?;
    assert_eq!(trained, joined(&each.vars())?.to_vec1::<f32>()?);
    assert!(trained.iter().zip(&x).all(|(now, before)| now != before), "{trained:?}");
    let (steps, moments) = one.state();
    assert_eq!((steps, moments.len(), moments[0][0].dims()), (5, 1, [3, 4].as_slice()));
    Ok(())
}

#[test]
fn parts_that_do_not_make_up_a_variable_are_refused() -> Result<()> {
    let var = Var::zeros(10, DType::F32, &Device::Cpu)?;
    let refused = |ranges: &[(usize, usize)], why: &str| {
        let parts = ranges.iter().map(|&(from, to)| Part { range: from..to, lr_ratio: 1.0, decay: 0.0 });
        let message = Group::new(var.clone(), parts.collect()).expect_err("refused").to_string();
        assert!(message.starts_with(why), "{message}");
    };
    refused(&[(0, 4), (5, 10)], "a part is 5..10, but the part before it ends at 4");
    refused(&[(0, 4), (3, 10)], "a part is 3..10, but the part before it ends at 4");
    refused(&[(1, 10)], "a part is 1..10, but the part before it ends at 0");
    refused(&[(0, 4), (4, 3), (3, 10)], "a part is 4..3, but a part ends where it begins");
    refused(&[(0, 4), (4, 9)], "the parts of a variable end at 9, but it has 10 elements");
    refused(&[(0, 4), (4, 11)], "the parts of a variable end at 11, but it has 10 elements");
    refused(&[], "the parts of a variable end at 0, but it has 10 elements");
    Ok(())
}

#[test]
fn learning_rates_and_decays_out_of_range_are_refused() -> Result<()> {
    let var = Var::zeros(10, DType::F32, &Device::Cpu)?;
    for (lr_ratio, decay, why) in [
        (f64::NAN, 0.0, "the learning-rate ratio of a part is NaN"),
        (-0.5, 0.0, "the learning-rate ratio of a part is -0.5"),
        (f64::INFINITY, 0.0, "the learning-rate ratio of a part is inf"),
        (1.0, -1e-3, "the decay of a part is -0.001"),
        (1.0, f64::NAN, "the decay of a part is NaN"),
    ] {
        let parts = vec![Part { range: 0..10, lr_ratio, decay }];
        for group in [Group::new(var.clone(), parts), Group::whole(var.clone(), lr_ratio, decay)] {
            let message = group.expect_err(why).to_string();
            assert!(message.starts_with(why), "{message}");
        }
    }
    Group::whole(var, 0.0, 0.0).map(|_| ())
}

/// Adam's first step is the learning rate times the sign of the gradient.
#[test]
fn each_factor_has_its_learning_rate() -> Result<()> {
    common::devices().iter().try_for_each(each_factor_has_its_learning_rate_on)
}

fn each_factor_has_its_learning_rate_on(device: &Device) -> Result<()> {
    let shapes = [
        KronShape::kron(LayerDims { d_out: 12, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 2),
        KronShape::lora(LayerDims { d_out: 12, d_in: 10 }, 2),
        KronShape::krona(LayerDims { d_out: 12, d_in: 10 }, Split { a_out: 3, a_in: 2 }),
    ];
    for shape in shapes.map(|s| s.expect("legal")) {
        let scaling = Scaling::new(4.0, 2, ScaleRule::AlphaOverR).expect("legal");
        let delta = TrainableDelta::new("m", shape, scaling, 3, device)?;
        let before = delta.theta().to_vec1::<f32>()?;
        let theta = delta.theta().clone();
        let mut optimizer = AdamW::new(vec![delta.group(8.0, 0.0)?], Default::default())?;
        let mut gradients = Gradients::new(&optimizer.vars());
        gradients.add(&theta.sum_all()?.backward()?, 1.0)?;
        optimizer.step(&gradients, 1e-3)?;
        let zero_first = if shape.rank().is_some() { shape.b_len() } else { shape.c_len() };
        for (i, (now, before)) in theta.to_vec1::<f32>()?.iter().zip(before).enumerate() {
            let fast = (shape.a_len()..shape.a_len() + zero_first).contains(&i);
            let want = if fast { 8e-3 } else { 1e-3 };
            assert!((before - now - want).abs() < 1e-6, "element {i} of {shape} moved by {}", before - now);
        }
    }
    Ok(())
}

/// A planted adapter is learned on every device, in every type of activations.
#[test]
fn a_planted_adapter_is_learned() -> Result<()> {
    let shape =
        KronShape::kron(LayerDims { d_out: 12, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 2).expect("legal");
    let scaling = Scaling::new(4.0, 2, ScaleRule::AlphaOverR).expect("legal");
    for device in common::devices() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let planted = Layer::new("m", scaling, Theta::random(shape, 7)).expect("legal");
            let x: Vec<f32> = (0..64 * 10).map(|i| ((i * 37 % 61) as f32 - 30.0) / 20.0).collect();
            let x = Tensor::from_vec(x, (64, 10), &device)?.to_dtype(dtype)?;
            let base = Linear::new(Tensor::zeros((12, 10), dtype, &device)?, None);
            let want = KronLinear::new(base.clone(), TrainableDelta::from_layer(&planted, &device)?)?;
            let want = want.forward_with(&x, None)?.to_dtype(DType::F32)?.detach();
            let delta = TrainableDelta::new("m", shape, scaling, 3, &device)?;
            let layer = KronLinear::new(base, delta.clone())?;
            let mut optimizer = AdamW::new(vec![Group::from(delta.theta().clone())], Default::default())?;
            let mut losses = Vec::new();
            for _ in 0..200 {
                let loss =
                    (layer.forward_with(&x, None)?.to_dtype(DType::F32)? - &want)?.sqr()?.mean_all()?;
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
