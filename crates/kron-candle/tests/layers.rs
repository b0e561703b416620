//! Layers: names, files, merging, bases, dropout, errors.

mod common;

use std::sync::Arc;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{Linear, VarBuilder, VarMap};
use kron_candle::{
    Adapter, Dropout, DropoutKey, IfExists, Inject, KronLinear, KronShape, Layer, LayerDims, Pattern,
    ScaleRule, Scaling, Split, Theta, TrainableDelta,
};

fn scaling() -> Scaling {
    Scaling::new(12.0, 8, ScaleRule::AlphaOverR).expect("legal")
}

fn shapes() -> [KronShape; 3] {
    let shapes = [
        KronShape::kron(LayerDims { d_out: 40, d_in: 54 }, Split { a_out: 5, a_in: 3 }, 4),
        KronShape::lora(LayerDims { d_out: 40, d_in: 54 }, 7),
        KronShape::krona(LayerDims { d_out: 40, d_in: 54 }, Split { a_out: 5, a_in: 6 }),
    ];
    shapes.map(|s| s.expect("legal"))
}

/// Makes a base, an adapter with ΔW ≠ 0, and an input of three dimensions.
fn layer(shape: KronShape, dtype: DType, device: &Device) -> Result<(Linear, TrainableDelta, Tensor)> {
    let random = |seed, d_out, d_in| {
        let theta =
            Theta::random(KronShape::lora(LayerDims { d_out, d_in }, 1).expect("legal"), seed).into_vec();
        Tensor::from_vec(theta, d_out + d_in, device)
    };
    let weight = random(1, 40, 1)?
        .narrow(0, 0, 40)?
        .unsqueeze(1)?
        .matmul(&random(2, 54, 1)?.narrow(0, 0, 54)?.unsqueeze(0)?)?;
    let linear = Linear::new(weight.to_dtype(dtype)?, Some(random(3, 39, 1)?.to_dtype(dtype)?));
    let x = random(4, 2 * 5 * 54, 1)?.narrow(0, 0, 2 * 5 * 54)?.reshape((2, 5, 54))?.to_dtype(dtype)?;
    let layer = Layer::new("m", scaling(), Theta::random(shape, 9)).map_err(candle_core::Error::wrap)?;
    Ok((linear, TrainableDelta::from_layer(&layer, device)?, x))
}

fn max_difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    assert_eq!(a.dims(), b.dims());
    (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?.abs()?.max_all()?.to_scalar()
}

fn shapes_on_devices() -> impl Iterator<Item = (KronShape, Device)> {
    common::devices().into_iter().flat_map(|device| shapes().map(|shape| (shape, device.clone())))
}

#[test]
fn forward_is_merged_and_is_not_the_base() -> Result<()> {
    for (shape, device) in shapes_on_devices() {
        let (linear, delta, x) = layer(shape, DType::F32, &device)?;
        let layer = KronLinear::new(linear.clone(), delta)?;
        let y = layer.forward_with(&x, None)?;
        assert!(max_difference(&y, &layer.merge()?.forward(&x)?)? < 1e-4, "{shape}");
        assert!(max_difference(&y, &linear.forward(&x)?)? > 1e-2, "{shape}");
    }
    Ok(())
}

/// Merging copies the weight, which may be any view, before ΔW is added in the weight's dtype.
/// Compares the sum in place with the adapted layer, in bits for float32 and 2000 rows.
#[test]
fn a_sum_in_place_is_the_adapted_layer() -> Result<()> {
    for (shape, device) in shapes_on_devices() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (linear, delta, x) = layer(shape, dtype, &device)?;
            for x in [x.clone(), x.repeat((20, 10, 1))?, x.narrow(1, 0, 0)?, x.transpose(0, 1)?] {
                let y = KronLinear::from(linear.clone()).forward_with(&x.contiguous()?, None)?;
                let want = KronLinear::new(linear.clone(), delta.clone())?.forward_with(&x, None)?;
                let (before, shared) = (y.copy()?, y.clone());
                delta.add_to(&y, &x)?;
                assert_eq!(y.dims(), want.dims());
                if x.elem_count() > 0 {
                    assert_eq!(max_difference(&y, &want)?, 0.0, "{shape}, {dtype:?}");
                    assert_eq!(max_difference(&shared, &want)?, 0.0, "{shape}, {dtype:?}");
                    assert!(max_difference(&y, &before)? > 1e-2, "{shape}, {dtype:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_sum_in_place_refuses_what_does_not_fit_and_changes_nothing() -> Result<()> {
    let (_, delta, x) = layer(shapes()[0], DType::F32, &Device::Cpu)?;
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu);
    let wide = zeros(&[2, 5, 80], DType::F32)?;
    let variable = Var::zeros((2, 5, 40), DType::F32, &Device::Cpu)?;
    let refusals = [
        (zeros(&[2, 5, 41], DType::F32)?, x.clone(), "y is [2, 5, 41]"),
        (zeros(&[2, 4, 40], DType::F32)?, x.clone(), "y is [2, 4, 40]"),
        (zeros(&[], DType::F32)?, x.clone(), "y is []"),
        (zeros(&[2, 5, 40], DType::F32)?, x.narrow(2, 0, 53)?, "y is [2, 5, 40] and x is [2, 5, 53]"),
        (zeros(&[2, 5, 40], DType::BF16)?, x.clone(), "y is BF16, x F32"),
        (zeros(&[2, 5, 40], DType::F64)?, x.to_dtype(DType::F64)?, "y is F64"),
        (wide.narrow(2, 0, 40)?, x.clone(), "an operand of an adapter has strides"),
        (zeros(&[3, 5, 40], DType::F32)?.narrow(0, 0, 2)?, x.clone(), "y is [2, 5, 40] within"),
        (zeros(&[1, 5, 40], DType::F32)?.expand((2, 5, 40))?, x.clone(), "kron-residual: dst has repeated"),
        (variable.as_tensor().clone(), x.clone(), "y or x is tracked"),
    ];
    for (y, x, message) in refusals {
        let error = delta.add_to(&y, &x).expect_err(message).to_string();
        assert!(error.starts_with(message), "{error}");
        assert_eq!(y.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0);
    }
    Ok(())
}

#[test]
fn adapters_merge_into_a_map_of_tensors() -> Result<()> {
    let (linear, delta, x) = layer(shapes()[0], DType::F32, &Device::Cpu)?;
    let inject = Inject::trained(Adapter::new(vec![delta.to_layer()?]).map_err(candle_core::Error::wrap)?);
    let adapted = inject.wrap(linear.clone(), "m")?;
    let adapters = inject.finish()?;
    let mut tensors = std::collections::HashMap::from([("other".to_owned(), x.clone())]);
    let error = adapters.merge_into(&mut tensors).expect_err("no weight").to_string();
    assert!(error.starts_with("the tensors have no m.weight"), "{error}");
    tensors.insert("m.weight".to_owned(), linear.weight().t()?);
    let error = adapters.merge_into(&mut tensors).expect_err("turned").to_string();
    assert!(error.starts_with("m.weight is [54, 40]"), "{error}");
    tensors.insert("m.weight".to_owned(), linear.weight().clone());
    adapters.merge_into(&mut tensors)?;
    let merged = Linear::new(tensors["m.weight"].clone(), linear.bias().cloned());
    assert_eq!(max_difference(&merged.forward(&x)?, &adapted.merge()?.forward(&x)?)?, 0.0);
    Ok(())
}

#[test]
fn merging_leaves_the_base_as_it_is() -> Result<()> {
    for (shape, device) in shapes_on_devices() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let (linear, delta, _) = layer(shape, dtype, &device)?;
            let before = linear.weight().copy()?;
            let transposed = Linear::new(linear.weight().t()?.contiguous()?.t()?, None);
            let merged = KronLinear::new(linear.clone(), delta.clone())?.merge()?;
            assert_eq!(merged.weight().dtype(), dtype);
            assert_eq!(max_difference(linear.weight(), &before)?, 0.0, "{shape}");
            assert!(max_difference(merged.weight(), &before)? > 1e-2, "{shape}");
            let other = KronLinear::new(transposed, delta)?.merge()?;
            assert_eq!(max_difference(merged.weight(), other.weight())?, 0.0, "{shape}");
        }
    }
    Ok(())
}

#[test]
fn a_base_of_any_kind_gives_the_same_output_and_gradients() -> Result<()> {
    for (shape, device) in shapes_on_devices() {
        let (linear, delta, x) = layer(shape, DType::F32, &device)?;
        let x = Var::from_tensor(&x)?;
        let fused = KronLinear::new(linear.clone(), delta.clone())?.forward_with(&x, None)?;
        let added = KronLinear::over(Arc::new(linear), delta.clone())?.forward_with(&x, None)?;
        assert!(max_difference(&fused, &added)? < 1e-5);
        let (fused, added) = (fused.sqr()?.sum_all()?.backward()?, added.sqr()?.sum_all()?.backward()?);
        for var in [&x, delta.theta()] {
            let (fused, added) = (fused.get(var).expect("a gradient"), added.get(var).expect("a gradient"));
            let size = fused.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(size > 1e-3 && max_difference(fused, added)? < 1e-5 * size, "{shape}");
        }
    }
    Ok(())
}

#[test]
fn dropout_needs_a_key_and_every_layer_has_its_own_mask() -> Result<()> {
    for device in common::devices() {
        let (linear, delta, x) = layer(shapes()[0], DType::F32, &device)?;
        let delta = delta.with_dropout(Dropout::new(0.5).expect("legal"));
        let first = KronLinear::new(linear.clone(), delta.clone())?;
        let second = KronLinear::new(linear, delta.with_stream(1))?;
        let key = |offset| Some(DropoutKey { seed: 3, offset });
        let same = |a: &KronLinear, key_a, b: &KronLinear, key_b| -> Result<bool> {
            Ok(max_difference(&a.forward_with(&x, key_a)?, &b.forward_with(&x, key_b)?)? == 0.0)
        };
        assert!(same(&first, None, &second, None)?);
        assert!(same(&first, key(4), &first, key(4))?);
        assert!(!same(&first, key(4), &first, None)?);
        assert!(!same(&first, key(4), &first, key(5))?);
        assert!(!same(&first, key(4), &second, key(4))?);
    }
    Ok(())
}

/// No tensor is copied to another device implicitly.
#[test]
fn tensors_of_two_devices_are_refused() -> Result<()> {
    for device in common::devices().into_iter().filter(Device::is_cuda) {
        let (linear, delta, x) = layer(shapes()[0], DType::F32, &device)?;
        let (elsewhere, _, _) = layer(shapes()[0], DType::F32, &Device::Cpu)?;
        let message = |base: &Linear, x: &Tensor| {
            let layer = KronLinear::new(base.clone(), delta.clone()).expect("it fits");
            layer.forward_with(x, None).expect_err("refused").to_string()
        };
        assert!(message(&elsewhere, &x).contains("a tensor is on Cpu"), "{}", message(&elsewhere, &x));
        assert!(message(&linear, &x.to_device(&Device::Cpu)?).contains("device mismatch"));
    }
    Ok(())
}

#[test]
fn patterns_are_whole_names_or_globs() -> Result<()> {
    let cases = [
        ("q_proj", "model.layers.0.self_attn.q_proj", true),
        ("q_proj", "q_proj", true),
        ("proj", "model.layers.0.self_attn.q_proj", false),
        ("*.attention.*", "encoder.layer.0.attention.self.query", true),
        ("*.attention.*", "encoder.layer.0.output.dense", false),
        ("attention.output.dense", "encoder.layer.3.attention.output.dense", true),
        ("layer.*.dense", "encoder.layer.3.output.dense", true),
        ("q.proj", "layer.qxproj", false),
    ];
    for (pattern, module, want) in cases {
        assert_eq!(
            Pattern::new(pattern).map_err(candle_core::Error::wrap)?.matches(module),
            want,
            "{pattern} on {module}"
        );
    }
    assert!(Pattern::new("").is_err());
    Ok(())
}

/// Makes two modules that match q_proj, and one that does not.
fn model(inject: &Inject, vb: &VarBuilder) -> Result<Vec<KronLinear>> {
    let make = |name: &str| inject.linear(54, 40, true, vb.pp(name));
    ["layer.0.q_proj", "layer.0.k_proj", "layer.1.q_proj"].into_iter().map(make).collect()
}

#[test]
fn a_saved_adapter_comes_back_to_the_bit() -> Result<()> {
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
    for shape in shapes() {
        let inject = Inject::new(&["q_proj"], 5, |_, _| Ok((shape, scaling())))?;
        let made = model(&inject, &vb)?;
        let adapters = inject.finish()?;
        assert_eq!(
            adapters.deltas().iter().map(TrainableDelta::module).collect::<Vec<_>>(),
            ["layer.0.q_proj", "layer.1.q_proj"]
        );
        for (delta, seed) in adapters.deltas().iter().zip(20..) {
            delta.theta().set(&Tensor::new(Theta::random(shape, seed).as_slice(), &Device::Cpu)?)?;
        }
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("adapter.safetensors");
        adapters.save(&file, IfExists::Refuse)?;
        let inject = Inject::trained(Adapter::read(&file).map_err(candle_core::Error::wrap)?);
        let loaded = model(&inject, &vb)?;
        assert_eq!(inject.finish()?.to_adapter()?, adapters.to_adapter()?);
        let x = Tensor::ones((3, 54), DType::F32, &Device::Cpu)?;
        for (made, loaded) in made.iter().zip(&loaded) {
            assert_eq!(max_difference(&made.forward_with(&x, None)?, &loaded.forward_with(&x, None)?)?, 0.0);
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused_by_name() -> Result<()> {
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
    let message = |e: candle_core::Error| e.to_string();
    let rule = |_: &str, dims| Ok((KronShape::kron(dims, Split { a_out: 7, a_in: 2 }, 4)?, scaling()));

    let inject = Inject::new(&["q_proj"], 5, rule)?;
    let refused = message(model(&inject, &vb).expect_err("7 does not divide 40"));
    assert!(
        refused.contains("layer.0.q_proj") && refused.contains("7 does not divide d_out = 40"),
        "{refused}"
    );

    let inject = Inject::new(&["q_proj", "w_proj"], 5, |_, _| Ok((shapes()[0], scaling())))?;
    model(&inject, &vb)?;
    assert!(message(inject.finish().expect_err("no w_proj")).contains("w_proj"));

    let stranger = Layer::new("layer.9.q_proj", scaling(), Theta::random(shapes()[0], 1)).expect("legal");
    let inject = Inject::trained(Adapter::new(vec![stranger]).expect("one layer"));
    model(&inject, &vb)?;
    assert!(message(inject.finish().expect_err("no layer 9")).contains("layer.9.q_proj"));

    let (linear, delta, x) = layer(shapes()[0], DType::F32, &Device::Cpu)?;
    let layer = KronLinear::new(linear, delta.clone())?;
    let narrow = message(layer.forward_with(&x.narrow(2, 0, 50)?, None).expect_err("50 of 54"));
    assert!(narrow.contains("d_in = 54"), "{narrow}");
    assert!(layer.forward_with(&x.to_dtype(DType::F64)?, None).is_err());
    let wide = Linear::new(Tensor::zeros((41, 54), DType::F32, &Device::Cpu)?, None);
    assert!(message(KronLinear::new(wide, delta).expect_err("41 of 40")).contains("[41, 54]"));
    Ok(())
}

#[test]
fn an_unfused_adapter_adds_the_same_to_any_base_and_takes_no_dropout() -> Result<()> {
    for (shape, device) in shapes_on_devices() {
        let (linear, delta, x) = layer(shape, DType::F32, &device)?;
        let want = KronLinear::new(linear.clone(), delta.clone())?.forward_with(&x, None)?;
        let key = Some(DropoutKey { seed: 1, offset: 2 });
        let delta = delta.unfused();
        for layer in [
            KronLinear::new(linear.clone(), delta.clone())?,
            KronLinear::over(Arc::new(linear.clone()), delta.clone())?,
        ] {
            assert!(max_difference(&layer.forward_with(&x, key)?, &want)? < 1e-4, "{shape}");
        }
        let delta = delta.with_dropout(Dropout::new(0.25).expect("legal"));
        let layer = KronLinear::new(linear, delta)?;
        assert!(max_difference(&layer.forward_with(&x, None)?, &want)? < 1e-4, "{shape}");
        let message = layer.forward_with(&x, key).expect_err("refused").to_string();
        assert!(message.starts_with("m has dropout 0.25 on its adapter's input, but"), "{message}");
    }
    Ok(())
}

/// A layer without an adapter gives gradients to what is trained of it, and to x alone if nothing is.
#[test]
fn a_plain_layer_trains_what_is_a_variable() -> Result<()> {
    let device = Device::Cpu;
    let (weight, bias) = (Var::randn(0f32, 1.0, (6, 4), &device)?, Var::randn(0f32, 1.0, 6, &device)?);
    let x = Var::randn(0f32, 1.0, (3, 4), &device)?;
    for (trains_weight, trains_bias) in [(true, true), (true, false), (false, true), (false, false)] {
        let of =
            |var: &Var, trained| if trained { var.as_tensor().clone() } else { var.as_tensor().detach() };
        let linear = Linear::new(of(&weight, trains_weight), Some(of(&bias, trains_bias)));
        let gradients = KronLinear::from(linear).forward_with(&x, None)?.sum_all()?.backward()?;
        let has = |var: &Var| gradients.get(var).is_some();
        assert_eq!([has(&weight), has(&bias), has(&x)], [trains_weight, trains_bias, true]);
    }
    Ok(())
}

/// A layer is called, applied and put into a sequence like any module of candle: without dropout.
#[test]
fn a_layer_is_a_module_of_candle() -> Result<()> {
    let (linear, delta, x) = layer(shapes()[0], DType::F32, &Device::Cpu)?;
    let half = Dropout::new(0.5).map_err(candle_core::Error::wrap)?;
    let layer = KronLinear::new(linear, delta.with_dropout(half))?;
    let want = layer.forward_with(&x, None)?;
    let sequence = candle_nn::seq().add(layer.clone());
    for got in [layer.forward(&x)?, x.apply(&layer)?, sequence.forward(&x)?] {
        assert_eq!(max_difference(&got, &want)?, 0.0);
    }
    let dropped = layer.forward_with(&x, Some(DropoutKey { seed: 1, offset: 2 }))?;
    assert!(max_difference(&dropped, &want)? > 0.1);
    Ok(())
}
