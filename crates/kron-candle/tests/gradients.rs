//! Gradients of every case in cases.toml: y, dx and dθ of the fused and the unfused op, against candle's autograd of
//! y = x·Wᵀ + bias + s·x̃·(A ⊗ (B·C))ᵀ with a materialised ΔW, in float64 on the CPU.
//!
//! The bound is three times the error of the same formula in float32, and at least four roundings of the activations'
//! type: a packed factor, an intermediate, the base and the sum.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var, WithDType};
use candle_nn::Linear;
use kron_candle::{KronLinear, Layer, Scaling, TrainableDelta};
use kron_core::{Element, Outer};
use kron_tests::cases::{self, Case};
use kron_tests::inputs::Problem;

/// Results y, dx, dθ.
type Answer = [Tensor; 3];

#[test]
fn f32_agrees_with_autograd() {
    all::<f32>();
}

#[test]
fn f16_agrees_with_autograd() {
    all::<half::f16>();
}

#[test]
fn bf16_agrees_with_autograd() {
    all::<half::bf16>();
}

fn all<E: Element + WithDType>() {
    let devices = common::devices();
    for case in cases::all() {
        for &rows in case.rows.iter().filter(|&&rows| rows > 0) {
            check::<E>(&case, rows, &devices).unwrap_or_else(|e| panic!("{}, {rows} rows: {e}", case.name));
        }
    }
}

#[test]
fn zero_rows_give_an_empty_output_and_no_gradient() -> Result<()> {
    let p = Problem::<f32>::of_case(&cases::case_by_name("paper"), 0, 1);
    let s = p.op.shape;
    let weight = Tensor::zeros((s.d_out(), s.d_in()), DType::F32, &Device::Cpu)?;
    let fused = delta(&p, &Device::Cpu)?;
    for delta in [fused.clone(), fused.unfused()] {
        let y = KronLinear::new(Linear::new(weight.clone(), None), delta.clone())?
            .forward_with(&Tensor::zeros((0, s.d_in()), DType::F32, &Device::Cpu)?, None)?;
        assert_eq!(y.dims(), [0, s.d_out()]);
        let grad = y.sum_all()?.backward()?;
        // candle ends its graph at an empty product.
        assert_eq!(grad.get(delta.theta()).is_some(), delta.is_fused());
        if let Some(grad) = grad.get(delta.theta()) {
            assert_eq!(grad.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0);
        }
    }
    Ok(())
}

fn check<E: Element + WithDType>(case: &Case, rows: usize, devices: &[Device]) -> Result<()> {
    let mut p = Problem::<E>::of_case(case, rows, 3);
    let fused: Vec<TrainableDelta> = devices.iter().map(|device| delta(&p, device)).collect::<Result<_>>()?;
    agree(case, &p, &fused, 4.0)?;
    if <E as WithDType>::DTYPE == DType::F32 {
        // The unfused op supports no dropout.
        p.key = None;
        let unfused: Vec<TrainableDelta> = fused.into_iter().map(TrainableDelta::unfused).collect();
        agree(case, &p, &unfused, 4.0)?;
    }
    Ok(())
}

/// The unfused op rounds every intermediate to the activations' type: three factors, T, s·T, U, s·x̃·ΔWᵀ, the base and
/// the sum; the backward pass as many, and dY.
#[test]
fn the_unfused_op_supports_half_precision() -> Result<()> {
    fn on<E: Element + WithDType>(devices: &[Device]) -> Result<()> {
        let case = cases::case_by_name("distilbert");
        let p = Problem::<E>::of_case(&case, 16, 3);
        let engines = devices.iter().map(|device| Ok(delta(&p, device)?.unfused()));
        agree(&case, &p, &engines.collect::<Result<Vec<_>>>()?, 10.0)
    }
    let devices = common::devices();
    on::<half::f16>(&devices)?;
    // candle does not multiply bfloat16 on the CPU.
    on::<half::bf16>(&devices.into_iter().filter(|device| !device.is_cpu()).collect::<Vec<_>>())
}

/// Fails if an engine's error against float64 exceeds three times that of the formula in float32, and the given number
/// of roundings of the activations' type.
fn agree<E: Element + WithDType>(
    case: &Case,
    p: &Problem<E>,
    engines: &[TrainableDelta],
    roundings: f64,
) -> Result<()> {
    let (weight, bias) = base::<E>(p)?;
    let want = materialised(p, &weight, &bias, DType::F64)?;
    let plain = materialised(p, &weight, &bias, DType::F32)?;
    let floor = roundings * <E as Element>::DTYPE.unit_roundoff();
    for delta in engines {
        let got = layer(p, delta, &weight, &bias)?;
        for (i, name) in ["y", "dx", "dθ"].into_iter().enumerate() {
            let (error, lost) = (distance(&got[i], &want[i])?, distance(&plain[i], &want[i])?);
            assert!(
                error <= floor.max(3.0 * lost),
                "{}, {} rows, {} on {:?}, fused {}: {name} is {error:.2e} off, candle's float32 {lost:.2e}",
                case.name,
                p.rows(),
                <E as Element>::DTYPE,
                delta.theta().device().location(),
                delta.is_fused(),
            );
        }
    }
    Ok(())
}

/// Makes W and bias of the base, rounded to E.
fn base<E: Element + WithDType>(p: &Problem<E>) -> Result<(Tensor, Tensor)> {
    let s = p.op.shape;
    let values = |len: usize, seed: usize| -> Vec<f32> {
        (0..len)
            .map(|i| (((i * 7919 + seed) % 1009) as f32 / 504.5 - 1.0) / (s.d_in() as f32).sqrt())
            .collect()
    };
    let dtype = <E as WithDType>::DTYPE;
    let weight = Tensor::from_vec(values(s.d_in() * s.d_out(), 1), (s.d_out(), s.d_in()), &Device::Cpu)?;
    let bias = Tensor::from_vec(values(s.d_out(), 5), s.d_out(), &Device::Cpu)?;
    Ok((weight.to_dtype(dtype)?, bias.to_dtype(dtype)?))
}

fn delta<E: Element>(p: &Problem<E>, device: &Device) -> Result<TrainableDelta> {
    let scaling = Scaling::plain(p.op.scale.get()).map_err(candle_core::Error::wrap)?;
    let layer = Layer::new("layer", scaling, p.theta.clone()).map_err(candle_core::Error::wrap)?;
    Ok(TrainableDelta::from_layer(&layer, device)?.with_dropout(p.op.dropout))
}

/// Makes x, with a row stride of `pad` elements more than its width.
fn input<E: Element + WithDType>(p: &Problem<E>, device: &Device) -> Result<(Var, Tensor)> {
    let (rows, d_in) = (p.rows(), p.op.shape.d_in());
    let x = Tensor::from_iter(p.x.iter().copied(), device)?.reshape((rows, d_in))?;
    let wide = Var::from_tensor(&x.pad_with_zeros(1, 0, p.pad)?)?;
    let x = wide.narrow(1, 0, d_in)?;
    Ok((wide, x))
}

/// Runs the layer on its adapter's device, and copies the results to the CPU.
fn layer<E: Element + WithDType>(
    p: &Problem<E>,
    delta: &TrainableDelta,
    weight: &Tensor,
    bias: &Tensor,
) -> Result<Answer> {
    let device = delta.theta().device();
    let base = Linear::new(weight.to_device(device)?, Some(bias.to_device(device)?));
    let layer = KronLinear::new(base, delta.clone())?;
    let (wide, x) = input(p, device)?;
    let y = layer.forward_with(&x, p.key)?;
    let dy = dy(p, DType::F32)?.to_device(device)?;
    let grads = y.to_dtype(DType::F32)?.mul(&dy)?.sum_all()?.backward()?;
    let dx = grads.get(&wide).expect("a gradient of x").narrow(1, 0, p.op.shape.d_in())?;
    let dtheta = grads.get(delta.theta()).expect("a gradient of θ");
    Ok([y.to_device(&Device::Cpu)?, dx.to_device(&Device::Cpu)?, dtheta.to_device(&Device::Cpu)?])
}

fn materialised<E: Element + WithDType>(
    p: &Problem<E>,
    weight: &Tensor,
    bias: &Tensor,
    dtype: DType,
) -> Result<Answer> {
    let s = p.op.shape;
    let theta = Var::from_tensor(&Tensor::new(p.theta.as_slice(), &Device::Cpu)?.to_dtype(dtype)?)?;
    let x = Var::from_tensor(&input(p, &Device::Cpu)?.1.to_dtype(dtype)?.contiguous()?)?;
    let a = match s.outer() {
        Outer::One => Tensor::ones((1, 1, 1, 1), dtype, &Device::Cpu)?,
        Outer::Trained => theta.narrow(0, 0, s.a_len())?.reshape((s.a_out(), 1, s.a_in(), 1))?,
    };
    let c = theta.narrow(0, s.a_len() + s.b_len(), s.c_len())?.reshape((s.width(), s.c_in()))?;
    let inner = match s.rank() {
        Some(r) => theta.narrow(0, s.a_len(), s.b_len())?.reshape((s.b_out(), r))?.matmul(&c)?,
        None => c,
    };
    let delta = a.broadcast_mul(&inner.reshape((1, s.b_out(), 1, s.c_in()))?)?;
    let delta = delta.reshape((s.d_out(), s.d_in()))?;
    let y = x.matmul(&weight.to_dtype(dtype)?.t()?)?.broadcast_add(&bias.to_dtype(dtype)?)?;
    let dropped = (x.as_tensor() * mask(p, dtype)?)?;
    let y = (y + (dropped.matmul(&delta.t()?)? * f64::from(p.op.scale.get()))?)?;
    let grads = y.mul(&dy(p, dtype)?)?.sum_all()?.backward()?;
    let of = |var: &Var| grads.get(var).expect("a gradient").clone();
    Ok([y, of(&x), of(&theta)])
}

/// Makes the dropout mask: 1/(1 − p) for a kept element of x, 0 for a dropped one.
fn mask<E: Element>(p: &Problem<E>, dtype: DType) -> Result<Tensor> {
    let (rows, d_in) = (p.rows(), p.op.shape.d_in());
    let keep = if p.key.is_some() { p.op.dropout.keep_scale() } else { 1.0 };
    let at = |i: usize| if p.keeps(i / d_in, i % d_in) { keep } else { 0.0 };
    Tensor::from_iter((0..rows * d_in).map(at), &Device::Cpu)?.reshape((rows, d_in))?.to_dtype(dtype)
}

fn dy<E: Element + WithDType>(p: &Problem<E>, dtype: DType) -> Result<Tensor> {
    let dy = Tensor::from_iter(p.dy.iter().copied(), &Device::Cpu)?;
    dy.reshape((p.rows(), p.op.shape.d_out()))?.to_dtype(dtype)
}

/// Returns ‖got − want‖ / ‖want‖; fails if `want` is zero.
fn distance(got: &Tensor, want: &Tensor) -> Result<f64> {
    let norm = |t: &Tensor| t.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>();
    let size = norm(want)?;
    assert!(size > 0.0, "nothing to compare with");
    Ok((norm(&(got.to_dtype(DType::F64)? - want.to_dtype(DType::F64)?)?)? / size).sqrt())
}
