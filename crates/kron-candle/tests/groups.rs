//! Layers on one x, such as q, k and v: their adapters in one call, against one call per layer and the oracle.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::Linear;
use kron_adapter::gguf::{BlockType, Blocks};
use kron_candle::models::GroupTrace;
use kron_candle::{
    Dropout, DropoutKey, FrozenLinear, Inject, KronLinear, KronShape, Layer, LayerDims, Method,
    QuantisedLinear, Scaling, Split, Theta, TrainableDelta,
};
use kron_core::reference;
use ndarray::Array2;

const D_IN: usize = 96;
const ROWS: usize = 70;
const KEY: DropoutKey = DropoutKey { seed: 3, offset: 7 };

fn wrapped<T>(result: std::result::Result<T, impl std::error::Error + Send + Sync + 'static>) -> Result<T> {
    result.map_err(candle_core::Error::wrap)
}

fn kron(d_out: usize, a_out: usize) -> Result<KronShape> {
    wrapped(KronShape::kron(LayerDims { d_out, d_in: D_IN }, Split { a_out, a_in: 2 }, 4))
}

/// Values that repeat after a prime number of elements.
fn values(rows: usize, cols: usize, seed: usize, dtype: DType) -> Result<Tensor> {
    let value = |i: usize| (((i * 7919 + seed * 131) % 997) as f32 / 498.5 - 1.0) / (cols as f32).sqrt();
    Tensor::from_iter((0..rows * cols).map(value), &Device::Cpu)?.reshape((rows, cols))?.to_dtype(dtype)
}

fn delta(shape: KronShape, stream: u64, dropout: f32) -> Result<TrainableDelta> {
    let layer =
        wrapped(Layer::new("layer", wrapped(Scaling::plain(0.5))?, Theta::random(shape, stream + 1)))?;
    let delta = TrainableDelta::from_layer(&layer, &Device::Cpu)?.with_stream(stream);
    Ok(delta.with_dropout(wrapped(Dropout::new(dropout))?))
}

/// Makes layers with the adapters of these shapes, each a sum of its own terms, or none.
fn layers(
    shapes: &[Vec<KronShape>],
    d_outs: &[usize],
    dropout: f32,
    dtype: DType,
) -> Result<Vec<KronLinear>> {
    let mut stream = 0;
    let layer = |(i, (shapes, &d_out)): (usize, (&Vec<KronShape>, &usize))| {
        let base = Linear::new(values(d_out, D_IN, i, dtype)?, None);
        let mut deltas = shapes.iter().map(|shape| {
            stream += 1;
            delta(*shape, stream, dropout)
        });
        let Some(first) = deltas.next() else { return Ok(base.into()) };
        deltas.try_fold(KronLinear::new(base, first?)?, |layer, delta| layer.add_term(delta?))
    };
    shapes.iter().zip(d_outs).enumerate().map(layer).collect()
}

/// Outputs of a pass: each y, dX and all dθ.
type Outputs = (Vec<Tensor>, Tensor, Vec<f32>);

fn gradients(dtype: DType, layers: &[KronLinear]) -> Result<Vec<Tensor>> {
    let d_out = |layer: &KronLinear| layer.base().expect("a frozen base").dims().d_out;
    layers.iter().enumerate().map(|(i, layer)| values(ROWS, d_out(layer), i + 50, dtype)).collect()
}

fn joined(dthetas: &[Tensor]) -> Result<Vec<f32>> {
    Tensor::cat(dthetas, 0)?.to_vec1()
}

/// Runs all layers as a group; returns the number of their calls, too.
fn grouped(layers: &[KronLinear], x: &Tensor, key: Option<DropoutKey>) -> Result<(Outputs, usize)> {
    let (ys, trace) = GroupTrace::new(&layers.iter().collect::<Vec<_>>(), x, key)?;
    let (dx, dthetas) = trace.backward(&gradients(x.dtype(), layers)?, true)?;
    let (none, alone) = trace.backward(&gradients(x.dtype(), layers)?, false)?;
    assert!(none.is_none() && joined(&alone)? == joined(&dthetas)?, "gradients depend on dX");
    Ok(((ys, dx.expect("asked for"), joined(&dthetas)?), dthetas.len()))
}

/// Runs one layer after the other, and adds their dX.
fn each(layers: &[KronLinear], x: &Tensor, key: Option<DropoutKey>) -> Result<Outputs> {
    let (mut ys, mut sum, mut dthetas) = (Vec::new(), None::<Tensor>, Vec::new());
    for (layer, dy) in layers.iter().zip(gradients(x.dtype(), layers)?) {
        let (y, trace) = layer.trace(x, key)?;
        assert_eq!(bits(&y)?, bits(&layer.forward_with(x, key)?.detach())?);
        let (dx, dtheta) = trace.backward(&dy, true)?;
        let dx = dx.expect("asked for");
        ys.push(y);
        dthetas.extend(dtheta);
        sum = Some(match sum {
            Some(sum) => (sum + dx)?,
            None => dx,
        });
    }
    Ok((ys, sum.expect("layers"), joined(&dthetas)?))
}

fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

fn wide(tensor: &Tensor) -> Result<Array2<f64>> {
    let values = tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    wrapped(Array2::from_shape_vec(tensor.dims2()?, values))
}

/// Returns dX and all dθ in float64, without dropout.
fn oracle(layers: &[KronLinear], x: &Tensor) -> Result<(Vec<f64>, Vec<f64>)> {
    let (wide_x, mut dx, mut dthetas) = (wide(x)?, Array2::zeros((ROWS, D_IN)), Vec::new());
    for (i, (layer, dy)) in layers.iter().zip(gradients(x.dtype(), layers)?).enumerate() {
        let (dy, w) = (wide(&dy)?, wide(&values(dy.dim(1)?, D_IN, i, x.dtype())?)?);
        dx += &dy.dot(&w);
        for delta in layer.deltas() {
            let theta = wrapped(Theta::from_vec(delta.op().shape, delta.theta().to_vec1()?))?;
            let want = reference::backward(delta.op(), &theta, wide_x.view(), dy.view());
            dx += &want.dx;
            dthetas.extend(want.theta.iter().copied());
        }
    }
    Ok((dx.into_raw_vec_and_offset().0, dthetas))
}

/// Returns ‖got − want‖ / ‖want‖.
fn distance(got: impl IntoIterator<Item = f32>, want: &[f64]) -> f64 {
    let size: f64 = want.iter().map(|v| v * v).sum();
    assert!(size > 0.0, "nothing to compare with");
    let error = got.into_iter().zip(want).map(|(got, want)| (f64::from(got) - want).powi(2)).sum::<f64>();
    (error / size).sqrt()
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Layers on one x: a name, the shapes of each layer's terms, and the layers' outputs.
type Case = (&'static str, Vec<Vec<KronShape>>, &'static [usize]);

/// Y has the bits of one call per layer, dropout included; gradients are as near to float64 as those calls' are, and
/// have their bits if all terms have one shape.
#[test]
fn a_group_is_its_layers() -> Result<()> {
    let (wide, narrow, other) = (kron(64, 4)?, kron(32, 4)?, kron(64, 8)?);
    let full = KronShape::krona(LayerDims { d_out: 64, d_in: D_IN }, Split { a_out: 4, a_in: 6 });
    let full = wrapped(full)?;
    let cases: [Case; 5] = [
        ("q, k and v", vec![vec![wide], vec![narrow], vec![narrow]], &[64, 32, 32]),
        ("gate and up", vec![vec![wide], vec![wide]], &[64, 64]),
        ("k without an adapter", vec![vec![wide], vec![], vec![narrow]], &[64, 40, 32]),
        ("sums", vec![vec![wide, other, full], vec![narrow, narrow]], &[64, 32]),
        ("kinds", vec![vec![full], vec![other]], &[64, 64]),
    ];
    for (name, shapes, d_outs) in cases {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = values(ROWS, D_IN, 9, dtype)?;
            for (dropout, key) in [(0.0, None), (0.3, Some(KEY))] {
                let layers = layers(&shapes, d_outs, dropout, dtype)?;
                let (ours, calls) = grouped(&layers, &x, key)?;
                let theirs = each(&layers, &x, key)?;
                let place = format!("{name}, {dtype:?}, dropout {dropout}");
                assert_eq!(calls, 1, "{place}");
                for (ours, theirs) in ours.0.iter().zip(&theirs.0) {
                    assert_eq!(bits(ours)?, bits(theirs)?, "{place}: Y");
                }
                let all: Vec<KronShape> = shapes.concat();
                let one_shape = all.iter().all(|shape| *shape == all[0]);
                assert!(!one_shape || ours.2 == theirs.2, "{place}: dθ");
                if key.is_some() {
                    // The oracle has no mask. The layers' own calls are at its distance without one.
                    let near: Vec<f64> = floats(&theirs.1)?.into_iter().map(f64::from).collect();
                    let limit = if dtype == DType::F32 { 1e-5 } else { 2e-2 };
                    assert!(distance(floats(&ours.1)?, &near) < limit, "{place}: dX");
                    let near: Vec<f64> = theirs.2.iter().copied().map(f64::from).collect();
                    assert!(distance(ours.2, &near) < limit, "{place}: dθ");
                    continue;
                }
                let (dx, dtheta) = oracle(&layers, &x)?;
                let [of_ours, of_theirs] = [&ours.1, &theirs.1].map(floats);
                let (error, plain) = (distance(of_ours?, &dx), distance(of_theirs?, &dx));
                assert!(error <= 2.0 * plain, "{place}: dX is off by {error}, and by {plain} alone");
                let (error, plain) = (distance(ours.2, &dtheta), distance(theirs.2, &dtheta));
                assert!(error <= 3.0 * plain, "{place}: dθ is off by {error}, and by {plain} alone");
            }
        }
    }
    Ok(())
}

/// LoRAs, one adapter alone, different dropout, unfused ones and more than 16 terms are computed layer by layer, with
/// the bits of that.
#[test]
fn other_layers_are_computed_one_by_one() -> Result<()> {
    let lora = wrapped(KronShape::lora(LayerDims { d_out: 64, d_in: D_IN }, 4))?;
    let wide = kron(64, 4)?;
    let many = vec![wide; 9];
    for (name, shapes) in [
        ("LoRA", vec![vec![lora], vec![lora]]),
        ("a LoRA beside", vec![vec![wide], vec![lora]]),
        ("one alone", vec![vec![wide], vec![]]),
        ("18 terms", vec![many.clone(), many]),
    ] {
        let x = values(ROWS, D_IN, 9, DType::F32)?;
        let layers = layers(&shapes, &[64, 64], 0.3, DType::F32)?;
        let (ours, calls) = grouped(&layers, &x, Some(KEY))?;
        let theirs = each(&layers, &x, Some(KEY))?;
        assert_eq!(calls, shapes.iter().filter(|shapes| !shapes.is_empty()).count(), "{name}");
        assert!(ours.2 == theirs.2, "{name}: dθ");
        assert_eq!(bits(&ours.1)?, bits(&theirs.1)?, "{name}: dX");
        for (ours, theirs) in ours.0.iter().zip(&theirs.0) {
            assert_eq!(bits(ours)?, bits(theirs)?, "{name}: Y");
        }
    }
    let base = |seed| Ok::<_, candle_core::Error>(Linear::new(values(64, D_IN, seed, DType::F32)?, None));
    let layers =
        [KronLinear::new(base(0)?, delta(wide, 1, 0.3)?)?, KronLinear::new(base(1)?, delta(wide, 2, 0.1)?)?];
    let x = values(ROWS, D_IN, 9, DType::F32)?;
    assert_eq!(grouped(&layers, &x, Some(KEY))?.1, 2, "different dropout");
    let unfused = KronLinear::new(base(0)?, delta(wide, 1, 0.0)?.unfused())?;
    assert!(GroupTrace::new(&[&unfused, &layers[0]], &x, None).is_err());
    Ok(())
}

/// A base adds its dX to another's as the sum of both does.
#[test]
fn bases_add_their_gradients() -> Result<()> {
    let bytes: Vec<u8> = values(40, D_IN, 4, DType::F32)?
        .flatten_all()?
        .to_vec1::<f32>()?
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let blocks = wrapped(Blocks::new(BlockType::F32, 40, D_IN, bytes))?;
    let matrix = |dtype| Ok::<_, candle_core::Error>(Linear::new(values(40, D_IN, 4, dtype)?, None));
    let bases: [(Box<dyn FrozenLinear>, DType); 3] = [
        (Box::new(matrix(DType::F32)?), DType::F32),
        (Box::new(matrix(DType::BF16)?), DType::BF16),
        (Box::new(QuantisedLinear::new(blocks, None)?), DType::F32),
    ];
    for (base, dtype) in bases {
        let (dy, before) = (values(ROWS, 40, 5, dtype)?, values(ROWS, D_IN, 6, dtype)?);
        let storage = |tensor: &Tensor| match &*tensor.storage_and_layout().0 {
            candle_core::Storage::Cpu(storage) => storage.clone(),
            _ => unreachable!("on the CPU"),
        };
        let mut sum = storage(&before);
        base.cpu_backward_add(&storage(&dy), dy.layout(), &mut sum)?;
        let sum = Tensor::from_storage(
            candle_core::Storage::Cpu(sum),
            (ROWS, D_IN),
            candle_core::op::BackpropOp::none(),
            false,
        );
        let want = wide(&before)? + wide(&dy)?.dot(&wide(&values(40, D_IN, 4, dtype)?)?);
        let limit = if dtype == DType::F32 { 1e-6 } else { 1e-2 };
        let error = distance(floats(&sum)?, &want.into_raw_vec_and_offset().0);
        assert!(error < limit, "{base:?}: {error}");
    }
    Ok(())
}

#[test]
fn gradients_and_terms_that_do_not_fit_are_refused() -> Result<()> {
    let layers = layers(&[vec![kron(64, 4)?], vec![kron(32, 4)?]], &[64, 32], 0.0, DType::F32)?;
    let x = values(ROWS, D_IN, 9, DType::F32)?;
    let (ys, trace) = GroupTrace::new(&[&layers[0], &layers[1]], &x, None)?;
    let message = |dys: &[Tensor]| trace.backward(dys, true).expect_err("refused").to_string();
    let few = message(&ys[..1]);
    assert!(few.starts_with("1 gradients are given for the outputs of 2 layers"), "{few}");
    let swapped = message(&[ys[1].clone(), ys[0].clone()]);
    assert!(swapped.contains("64"), "{swapped}");
    let narrow = values(ROWS, 48, 9, DType::F32)?;
    let wrong = GroupTrace::new(&[&layers[0], &layers[1]], &narrow, None).err().expect("refused").to_string();
    assert!(wrong.starts_with("x is [70, 48], but d_in of its layers is 96"), "{wrong}");
    let message = |layer: KronLinear, term| layer.add_term(term).expect_err("refused").to_string();
    let sizes = message(layers[0].clone(), delta(kron(32, 4)?, 1, 0.0)?);
    assert!(sizes.starts_with("a term of layer is 32×96"), "{sizes}");
    let unfused = message(layers[0].clone(), delta(kron(64, 4)?, 1, 0.0)?.unfused());
    assert!(unfused.starts_with("the terms of layer are fused"), "{unfused}");
    let base: KronLinear = Linear::new(values(64, D_IN, 1, DType::F32)?, None).into();
    let none = message(base, delta(kron(64, 4)?, 1, 0.0)?);
    assert!(none.contains("the layer has none"), "{none}");
    let term = || delta(kron(64, 4)?, 1, 0.0);
    let full = (1..16).try_fold(layers[0].clone(), |layer, _| layer.add_term(term()?))?;
    let most = message(full, term()?);
    assert!(most.starts_with("layer has 16 terms"), "{most}");
    Ok(())
}

/// A sum has the gradients of its terms by candle's graph, and merges into W once.
#[test]
fn a_sum_is_trained_and_merged() -> Result<()> {
    for dtype in [DType::F32, DType::BF16] {
        let shapes = vec![kron(64, 4)?, kron(64, 4)?, kron(64, 8)?];
        let layer = layers(&[shapes], &[64], 0.0, dtype)?.remove(0);
        let x = values(ROWS, D_IN, 9, dtype)?;
        let plain = layer.merge()?;
        let want = wide(&values(64, D_IN, 0, dtype)?)?;
        let mut delta_weight = Array2::<f64>::zeros((64, D_IN));
        for delta in layer.deltas() {
            let theta = wrapped(Theta::from_vec(delta.op().shape, delta.theta().to_vec1()?))?;
            delta_weight += &reference::delta_weight(delta.op(), &theta);
        }
        let want = want + delta_weight;
        let unit = if dtype == DType::F32 { 2f64.powi(-22) } else { 2f64.powi(-8) };
        let error =
            (wide(plain.weight())? - &want).mapv(f64::abs) - want.mapv(|v| 1.01 * unit * v.abs() + 1e-6);
        assert!(error.iter().all(|excess| *excess <= 0.0), "{dtype:?}: W + ΔW is not rounded once");
        let y = layer.forward_with(&x, None)?;
        let grads =
            (y.to_dtype(DType::F32)? * gradients(DType::F32, std::slice::from_ref(&layer))?.remove(0))?;
        let grads = grads.sum_all()?.backward()?;
        let of_graph =
            layer.deltas().iter().map(|delta| grads.get(delta.theta()).expect("a gradient").to_vec1());
        let of_graph = of_graph.collect::<Result<Vec<Vec<f32>>>>()?.concat();
        let (_, dtheta) = oracle(std::slice::from_ref(&layer), &x)?;
        let limit = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
        assert!(distance(of_graph, &dtheta) < limit, "{dtype:?}");
    }
    Ok(())
}

/// New sums have one mask for each layer, and merge into a model's weights as a whole.
#[test]
fn injected_sums_share_a_mask_and_merge() -> Result<()> {
    let method = Method::Kron { split: Split { a_out: 4, a_in: 2 }, rank: 4 };
    let make = || Inject::of_method(&["q", "k"], 1, method, 8.0);
    let refused = |terms| make()?.with_terms(terms).map(drop);
    assert!(refused(0).is_err() && refused(17).is_err() && refused(16).is_ok());
    let inject = make()?.with_terms(3)?.with_dropout(wrapped(Dropout::new(0.5))?);
    let base = |seed| Ok::<_, candle_core::Error>(Linear::new(values(64, D_IN, seed, DType::F32)?, None));
    let layers = [inject.wrap(base(0)?, "q")?, inject.wrap(base(1)?, "k")?];
    let adapters = inject.finish()?;
    let theta = Theta::random(adapters.deltas()[0].op().shape, 1);
    for delta in adapters.deltas() {
        delta.theta().set(&Tensor::new(theta.as_slice(), &Device::Cpu)?)?;
    }
    let (x, zero) =
        (values(ROWS, D_IN, 9, DType::F32)?, Tensor::zeros((64, D_IN), DType::F32, &Device::Cpu)?);
    let alone = |delta: &TrainableDelta| {
        let layer = KronLinear::new(Linear::new(zero.clone(), None), delta.clone())?;
        bits(&layer.forward_with(&x, Some(KEY))?.detach())
    };
    let each = adapters.deltas().iter().map(alone).collect::<Result<Vec<_>>>()?;
    assert!(each[..3].iter().all(|y| *y == each[0]) && each[3..].iter().all(|y| *y == each[3]));
    assert_ne!(each[0], each[3], "layers have masks of their own");
    let mut tensors = HashMap::new();
    for (i, name) in ["q.weight", "k.weight"].into_iter().enumerate() {
        tensors.insert(name.to_owned(), values(64, D_IN, i, DType::F32)?);
    }
    adapters.merge_into(&mut tensors)?;
    for (layer, name) in layers.iter().zip(["q.weight", "k.weight"]) {
        assert_eq!(bits(&tensors[name])?, bits(layer.merge()?.weight())?);
    }
    Ok(())
}
