//! Operands that do not fit: handled, or refused by a sentence.

use burn::module::Param;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor};
use kron_burn::{DropoutKey, KronAdapter, KronForward, KronOp, KronShape, LayerDims, Theta};
use kron_core::Scale;
use kron_tests::cases;
use kron_tests::inputs::Problem;

use crate::common::{adapter, distance, input, layer, run, values};

fn problem() -> Problem<f32> {
    Problem::of_case(&cases::case_by_name("lora"), 4, 3)
}

fn refused(layer: &Linear, x: Tensor<2>, key: Option<DropoutKey>) -> String {
    layer.try_forward_kron(x, key).unwrap_err().to_string()
}

#[test]
fn shapes_and_dtypes() {
    let (p, device) = (problem(), Device::flex());
    let f32_layer = layer(&p, DType::F32, false, &device);
    let x = |d_in: usize, dtype| Tensor::<2>::zeros([4, d_in], (&device, dtype));
    assert_eq!(refused(&f32_layer, x(96, DType::F32), None), "x is [4, 96], but the layer's d_in is 97");
    assert_eq!(refused(&f32_layer, x(97, DType::BF16), None), "x is BF16, but the weight is F32");
    assert_eq!(refused(&f32_layer, x(97, DType::F64), None), "x is F64, but the weight is F32");
    let mut mixed = layer(&p, DType::F32, false, &device);
    mixed.bias = mixed.bias.map(|b| Param::from_tensor(b.val().cast(DType::F16)));
    assert_eq!(refused(&mixed, x(97, DType::F32), None), "x is F32, but the bias is F16");
    let f64_layer = layer(&p, DType::F64, false, &device);
    let key = Some(DropoutKey { seed: 1, offset: 0 });
    assert!(refused(&f64_layer, x(97, DType::F64), key).starts_with("dropout has a key, but a F64 weight"));
    assert!(f64_layer.try_forward_kron(x(97, DType::F64), None).is_ok());
}

/// The panic of `forward_kron` is the sentence of `try_forward_kron`.
#[test]
#[should_panic(expected = "x is [4, 96], but the layer's d_in is 97")]
fn forward_kron_panics_as_forward_does() {
    layer(&problem(), DType::F32, false, &Device::flex())
        .forward_kron(Tensor::<2>::zeros([4, 96], &Device::flex()));
}

#[test]
fn adapters_of_other_weights() {
    let op = |d_out| {
        KronOp::new(KronShape::lora(LayerDims { d_out, d_in: 97 }, 2).unwrap(), Scale::new(1.0).unwrap())
    };
    let theta = Theta::random(op(7).shape, 1);
    let error = KronAdapter::new(&theta, op(8), &Device::flex()).unwrap_err().to_string();
    assert_eq!(error, "θ is of 7×97 lora r 2, but the op is of 8×97 lora r 2");
}

/// x without autodiff under a model with it is an input without a gradient; a frozen θ has none.
#[test]
fn parts_without_a_gradient() {
    let (p, device) = (problem(), Device::flex().autodiff());
    let mut trained = layer(&p, DType::F32, false, &device);
    let (_, x) = input(&p, DType::F32, &device);
    let all = run(&p, &trained, DType::F32, |layer, x| layer.forward_kron(x));

    let y = trained.forward_kron(x.clone().inner());
    let grads = crate::common::backward(&p, y, &device);
    let theta = values(adapter(&trained).theta.val().grad(&grads).expect("of θ"));
    assert_eq!(theta, all[2]);

    trained = burn::module::Module::freeze(trained);
    let frozen = run(&p, &trained, DType::F32, |layer, x| layer.forward_kron(x));
    assert!(frozen[2].is_empty());
    assert_eq!((&frozen[0], &frozen[1]), (&all[0], &all[1]));

    // Nothing is tracked: the output is a plain value.
    let y = trained.forward_kron(x.inner());
    assert!(!y.is_require_grad());
}

/// burn's gradients are plain values, so a second derivative cannot be asked for.
#[test]
fn a_gradient_has_no_gradient() {
    let (p, device) = (problem(), Device::flex().autodiff());
    let layer = layer(&p, DType::F32, false, &device);
    let (wide, x) = input(&p, DType::F32, &device);
    let grads = crate::common::backward(&p, layer.forward_kron(x), &device);
    let gradient = wide.grad(&grads).expect("of x");
    assert!(!gradient.is_autodiff());
}

/// Balanced checkpointing recomputes what burn may, and changes nothing.
#[test]
fn gradient_checkpointing_changes_nothing() {
    let p = problem();
    let gradients = |device: &Device| {
        let layer = layer(&p, DType::F32, false, device);
        run(&p, &layer, DType::F32, |layer, x| layer.forward_kron(burn::tensor::activation::relu(x)))
    };
    let plain = gradients(&Device::flex().autodiff());
    assert_eq!(gradients(&Device::flex().autodiff().gradient_checkpointing()), plain);
}

#[test]
fn a_quantised_weight_is_computed_by_burns_ops() {
    use burn::module::{Module, Quantizer};
    use burn::tensor::quantization::{Calibration, QuantValue};

    let device = Device::flex();
    let op = |dims| KronOp::new(KronShape::lora(dims, 4).unwrap(), Scale::new(2.0).unwrap());
    let linear = LinearConfig::new(64, 32).with_bias(false).init(&device);
    let scheme = device.settings().quantization.scheme.with_value(QuantValue::Q8S);
    let linear = linear.quantize_weights(&mut Quantizer::new(Calibration::MinMax, scheme));
    let dense = linear.weight.base().dequantize();
    let op = op(LayerDims { d_out: 32, d_in: 64 });
    let scaling = kron_burn::Scaling::plain(2.0).unwrap();
    let theta = Theta::random(op.shape, 1);
    let adapter = kron_burn::Adapter::new(vec![kron_burn::Layer::new("0", scaling, theta).unwrap()]).unwrap();
    let attach = |linear| kron_burn::Kron::trained(adapter.clone()).attach(vec![linear]).unwrap().0.remove(0);
    let plain = attach(Linear { weight: Param::from_tensor(dense), bias: linear.bias.clone() });
    let quantised = attach(linear);
    let x = Tensor::<2>::random([5, 64], burn::tensor::Distribution::Default, &device);
    let want = values(plain.forward_kron(x.clone()));
    assert!(distance(&values(quantised.forward_kron(x.clone())), &want) < 1e-2);
    assert!(distance(&values(quantised.forward(x)), &want) < 1e-2);
}
