//! Layers of a problem in burn, and the same layer with a materialised ΔW by burn's own autodiff.

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use kron_burn::{Adapter, Kron, KronAdapter, Layer, Scaling};
use kron_core::{Dtype, Element, Outer};
use kron_tests::inputs::Problem;

/// Values of y and of the gradients of x, θ, W and b; a result that the case lacks is empty.
pub type Answer = [Vec<f64>; 5];

/// Names of an answer's parts.
pub const NAMES: [&str; 5] = ["y", "dx", "dθ", "dW", "db"];

/// Dtype of an element type in burn.
pub fn dtype<E: Element>() -> DType {
    match E::DTYPE {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

/// Makes a tensor of these values.
pub fn tensor<const D: usize>(
    values: impl IntoIterator<Item = f32>,
    shape: [usize; D],
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    let values: Vec<f32> = values.into_iter().collect();
    Tensor::from_data(TensorData::new(values, shape), (device, dtype))
}

/// Values of a tensor.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.cast(DType::F64).into_data().try_to_vec().expect("float64")
}

/// Values in (−1, 1) / √d_in.
fn base_values(len: usize, d_in: usize, seed: usize) -> impl Iterator<Item = f32> {
    (0..len).map(move |i| (((i * 7919 + seed) % 1009) as f32 / 504.5 - 1.0) / (d_in as f32).sqrt())
}

/// Makes W, stored by rows or by columns, and b, rounded to `rounded` and kept as `dtype`.
pub fn base<E: Element>(
    p: &Problem<E>,
    rounded: DType,
    dtype: DType,
    columns: bool,
    device: &Device,
) -> (Tensor<2>, Tensor<1>) {
    let s = p.op.shape;
    let (d_in, d_out) = (s.d_in(), s.d_out());
    let weight: Tensor<2> = tensor(base_values(d_in * d_out, d_in, 1), [d_in, d_out], rounded, device);
    let bias: Tensor<1> = tensor(base_values(d_out, d_in, 5), [d_out], rounded, device);
    let weight = if columns {
        // A transposed view of a contiguous d_out × d_in, as `LinearLayout::Col` keeps it.
        let data = weight.transpose().into_data();
        Tensor::from_data(data, (device, rounded)).transpose()
    } else {
        weight
    };
    (weight.cast(dtype), bias.cast(dtype))
}

/// Makes a layer of burn with the problem's adapter.
pub fn layer<E: Element>(p: &Problem<E>, dtype: DType, columns: bool, device: &Device) -> Linear {
    let (weight, bias) = base(p, self::dtype::<E>(), dtype, columns, device);
    let linear = Linear { weight: Param::from_tensor(weight), bias: Some(Param::from_tensor(bias)) };
    let scaling = Scaling::plain(p.op.scale.get()).expect("finite");
    let layer = Layer::new("0", scaling, p.theta.clone()).expect("a legal name");
    let kron = Kron::trained(Adapter::new(vec![layer]).expect("a layer")).with_dropout(p.op.dropout);
    let (mut layers, _) = kron.attach(vec![linear]).expect("it fits");
    layers.remove(0)
}

/// The adapter of a layer.
pub fn adapter(layer: &Linear) -> &KronAdapter {
    layer.weight.reparameterization().expect("an adapter")
}

/// Makes x as a view into rows of `pad` elements more; both.
pub fn input<E: Element>(p: &Problem<E>, dtype: DType, device: &Device) -> (Tensor<2>, Tensor<2>) {
    let (rows, d_in) = (p.rows(), p.op.shape.d_in());
    let wide = p.x.rows().into_iter().flat_map(|row| {
        let padding = std::iter::repeat_n(0.25, p.pad);
        row.iter().map(|x| x.to_f32()).chain(padding).collect::<Vec<_>>()
    });
    let wide: Tensor<2> = tensor(wide, [rows, d_in + p.pad], dtype, device);
    let wide = wide.require_grad();
    (wide.clone(), wide.narrow(1, 0, d_in))
}

/// Runs a layer's forward and its backward for the loss Σ y·dy.
pub fn run<E: Element>(
    p: &Problem<E>,
    layer: &Linear,
    dtype: DType,
    forward: impl FnOnce(&Linear, Tensor<2>) -> Tensor<2>,
) -> Answer {
    let device = layer.weight.base().device();
    let (wide, x) = input(p, dtype, &device);
    let y = forward(layer, x);
    assert_eq!(y.dtype(), dtype);
    let grads = backward(p, y.clone(), &device);
    let dx = wide.grad(&grads).expect("a gradient of x").narrow(1, 0, p.op.shape.d_in());
    let dtheta = adapter(layer).theta.val().grad(&grads);
    let bias = layer.bias.as_ref().expect("a bias");
    [
        values(y),
        values(dx),
        dtheta.map(values).unwrap_or_default(),
        layer.weight.base().grad(&grads).map(values).unwrap_or_default(),
        bias.val().grad(&grads).map(values).unwrap_or_default(),
    ]
}

/// Computes the gradients of Σ y·dy.
pub fn backward<E: Element>(p: &Problem<E>, y: Tensor<2>, device: &Device) -> Gradients {
    let dtype = if y.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let dy: Tensor<2> =
        tensor(p.dy.iter().map(|v| v.to_f32()), [p.rows(), p.op.shape.d_out()], dtype, device);
    (y.cast(dtype) * dy).sum().backward()
}

/// Computes y = x·W + b + s·x̃·(A ⊗ (B·C))ᵀ with a materialised ΔW, by burn's ops and autodiff.
pub fn materialised<E: Element>(p: &Problem<E>, dtype: DType, device: &Device) -> Answer {
    let s = p.op.shape;
    let (weight, bias) = base(p, self::dtype::<E>(), dtype, false, device);
    let (weight, bias) = (weight.require_grad(), bias.require_grad());
    let theta: Tensor<1> = tensor(p.theta.as_slice().iter().copied(), [s.params()], dtype, device);
    let theta = theta.require_grad();
    let x: Tensor<2> = tensor(p.x.iter().map(|v| v.to_f32()), p.x.dim().into(), dtype, device);
    let x = x.require_grad();
    let part = |start: usize, rows: usize, columns: usize| {
        theta.clone().narrow(0, start, rows * columns).reshape([rows, columns])
    };
    let c = part(s.a_len() + s.b_len(), s.width(), s.c_in());
    let inner = match s.rank() {
        Some(r) => part(s.a_len(), s.b_out(), r).matmul(c),
        None => c,
    };
    let inner: Tensor<4> = inner.reshape([1, s.b_out(), 1, s.c_in()]);
    let delta = match s.outer() {
        Outer::One => inner,
        Outer::Trained => part(0, s.a_out(), s.a_in()).reshape([s.a_out(), 1, s.a_in(), 1]) * inner,
    };
    let delta = delta.reshape([s.d_out(), s.d_in()]);
    let keep = (0..p.x.len()).map(|i| {
        let (row, column) = (i / s.d_in(), i % s.d_in());
        if p.keeps(row, column) { p.keep_scale() as f32 } else { 0.0 }
    });
    let mask: Tensor<2> = tensor(keep, p.x.dim().into(), dtype, device);
    let dropped = x.clone() * mask;
    let y = x.clone().matmul(weight.clone()) + bias.clone().unsqueeze();
    let y = y + dropped.matmul(delta.transpose()).mul_scalar(p.op.scale.get());
    let grads = backward(p, y.clone(), device);
    [
        values(y),
        values(x.grad(&grads).expect("of x")),
        values(theta.grad(&grads).expect("of θ")),
        values(weight.grad(&grads).expect("of W")),
        values(bias.grad(&grads).expect("of b")),
    ]
}

/// Returns ‖got − want‖ / ‖want‖.
pub fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let size = norm(&mut want.iter().copied());
    assert!(size > 0.0, "nothing to compare with");
    norm(&mut got.iter().zip(want).map(|(got, want)| got - want)) / size
}

/// Computes the base alone, y = x·W + b and dx, by burn in a dtype.
fn base_alone<E: Element>(p: &Problem<E>, dtype: DType, columns: bool, device: &Device) -> [Vec<f64>; 2] {
    let (weight, bias) = base(p, self::dtype::<E>(), dtype, columns, device);
    let (wide, x) = input(p, dtype, device);
    let y = burn::tensor::module::linear(x, weight, Some(bias));
    let grads = backward(p, y.clone(), device);
    let dx = wide.grad(&grads).expect("of x").narrow(1, 0, p.op.shape.d_in());
    [values(y), values(dx)]
}

/// Fails if a part of `got` is further from float64 than three times the same formula in float32, and than the given
/// number of roundings of the activations' type, beside the error of burn's own product of the base in that type.
/// Parts that `got` lacks are left out.
pub fn agree<E: Element>(what: &str, p: &Problem<E>, got: &Answer, roundings: f64) {
    let device = Device::flex().autodiff();
    let (want, plain) = (materialised(p, DType::F64, &device), materialised(p, DType::F32, &device));
    let exact = base_alone(p, DType::F64, false, &device);
    let bases = [false, true].map(|columns| base_alone(p, dtype::<E>(), columns, &device));
    let floor = roundings * E::DTYPE.unit_roundoff();
    for (i, name) in NAMES.into_iter().enumerate().filter(|(i, _)| !got[*i].is_empty()) {
        let (error, lost) = (distance(&got[i], &want[i]), distance(&plain[i], &want[i]));
        let size = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let of_base = bases.iter().filter_map(|base| {
            let exact = exact.get(i)?;
            Some(distance(&base[i], exact) * size(exact) / size(&want[i]))
        });
        let of_base = of_base.fold(0.0, f64::max);
        assert!(
            error <= floor.max(3.0 * lost) + of_base,
            "{what}, {} rows, {}: {name} is {error:.2e} off, burn's float32 {lost:.2e}, its base {of_base:.2e}",
            p.rows(),
            E::DTYPE,
        );
    }
}
