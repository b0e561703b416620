//! Rows of many adapters in one layer, against layers with one adapter each.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Tensor};
use candle_nn::{Linear, Module};
use kron_candle::{
    Adapter, Dropout, DropoutKey, FilePool, FrozenLinear, IfExists, Inject, KronLinear, KronShape, Layer,
    LayerDims, PoolEntry, PooledAdapter, ScaleRule, Scaling, Split, Theta, TrainableDelta,
};

const DIMS: LayerDims = LayerDims { d_out: 24, d_in: 30 };
/// Numbers of adapters in no order, some rows without one, and adapter 3 without a row.
const TABLE: [i32; 11] = [2, -1, 0, 1, 1, 2, -1, 0, 2, 4, 1];

fn scaling() -> Scaling {
    Scaling::new(6.0, 4, ScaleRule::AlphaOverR).expect("finite")
}

/// Layers whose kinds, splits and ranks differ.
fn layers() -> Vec<Layer> {
    let kron = |a_out, a_in, rank| KronShape::kron(DIMS, Split { a_out, a_in }, rank).expect("a legal shape");
    let lora = |rank| KronShape::lora(DIMS, rank).expect("a legal shape");
    let krona = KronShape::krona(DIMS, Split { a_out: 4, a_in: 5 }).expect("a legal shape");
    let shapes = [kron(4, 5, 3), lora(2), kron(6, 2, 4), lora(5), krona];
    let layer = |(i, shape): (u64, KronShape)| Layer::new("m", scaling(), Theta::random(shape, i));
    (0..).zip(shapes).map(|pair| layer(pair).expect("a legal name")).collect()
}

fn deltas() -> Vec<TrainableDelta> {
    layers().iter().map(|layer| TrainableDelta::from_layer(layer, &Device::Cpu).expect("θ")).collect()
}

fn base(dtype: DType) -> Result<Linear> {
    let weight = Tensor::randn(0f32, 0.2, (DIMS.d_out, DIMS.d_in), &Device::Cpu)?.to_dtype(dtype)?;
    let bias = Tensor::randn(0f32, 0.2, DIMS.d_out, &Device::Cpu)?.to_dtype(dtype)?;
    Ok(Linear::new(weight, Some(bias)))
}

fn x(rows: impl Into<candle_core::Shape>, dtype: DType) -> Result<Tensor> {
    Tensor::randn(0f32, 1.0, rows, &Device::Cpu)?.to_dtype(dtype)
}

/// The bits of each row, as float32 holds every dtype's values.
fn rows(y: &Tensor) -> Result<Vec<Vec<u32>>> {
    let y = y.to_dtype(DType::F32)?.flatten_to(y.rank() - 2)?.to_vec2::<f32>()?;
    Ok(y.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect())
}

/// A base whose rows have the same bits in any company: y = ½x, again and again until y is full.
#[derive(Debug)]
struct Halves;

impl FrozenLinear for Halves {
    fn dims(&self) -> LayerDims {
        DIMS
    }

    fn cpu_forward(&self, x: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let values = x.to_dtype(layout, DType::F32)?;
        let y: Vec<f32> = values
            .as_slice::<f32>()?
            .chunks(DIMS.d_in)
            .flat_map(|row| row.iter().cycle().take(DIMS.d_out).map(|x| 0.5 * x))
            .collect();
        let layout = Layout::contiguous(y.len());
        CpuStorage::F32(y).to_dtype(&layout, x.dtype())
    }

    fn cpu_backward(&self, _: &CpuStorage, _: &Layout) -> Result<CpuStorage> {
        candle_core::bail!("no test asks for it")
    }
}

/// Forward for inference and for training, in every dtype: the bits of layers with one adapter, over its rows alone,
/// or of the base.
#[test]
fn rows_have_the_bits_of_layers_with_their_adapter() -> Result<()> {
    let (layers, deltas) = (layers(), deltas());
    let entries: Vec<PoolEntry<'_>> =
        layers.iter().map(|l| PoolEntry { op: l.op(), theta: l.theta().as_slice() }).collect();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let x = x((TABLE.len(), DIMS.d_in), dtype)?;
        let shared = KronLinear::frozen(Arc::new(Halves));
        let served = rows(&shared.forward_segments(&x, &entries, &TABLE)?)?;
        let trained = rows(&shared.train_segments(&x, &deltas, &TABLE, None)?)?;
        assert_eq!(served, trained, "{dtype:?}");
        let plain = rows(&shared.forward(&x)?)?;
        for number in -1..deltas.len() as i32 {
            let places = places(number);
            if places.is_empty() {
                assert_eq!(number, 3);
                continue;
            }
            let own = match usize::try_from(number) {
                Ok(i) => KronLinear::over(Arc::new(Halves), deltas[i].clone())?,
                Err(_) => shared.clone(),
            };
            let want = rows(&own.forward(&x.index_select(&Tensor::new(&*places, &Device::Cpu)?, 0)?)?)?;
            for (want, row) in want.into_iter().zip(places) {
                assert_eq!(served[row as usize], want, "row {row}, {dtype:?}");
                assert!(
                    number < 0 || want != plain[row as usize],
                    "an adapter that does nothing tests nothing"
                );
            }
        }
    }
    Ok(())
}

/// Rows of an adapter in [`TABLE`].
fn places(number: i32) -> Vec<u32> {
    (0..).zip(TABLE).filter(|&(_, i)| i == number).map(|(row, _)| row).collect()
}

/// A table of sequences is that of their rows.
#[test]
fn a_table_may_be_of_sequences() -> Result<()> {
    let layers = layers();
    let entries: Vec<PoolEntry<'_>> =
        layers.iter().map(|l| PoolEntry { op: l.op(), theta: l.theta().as_slice() }).collect();
    let (shared, x) = (KronLinear::from(base(DType::F32)?), x((3, 2, DIMS.d_in), DType::F32)?);
    let y = shared.forward_segments(&x, &entries, &[4, -1, 0])?;
    assert_eq!(y.dims(), [3, 2, DIMS.d_out]);
    assert_eq!(rows(&y)?, rows(&shared.forward_segments(&x, &entries, &[4, 4, -1, -1, 0, 0])?)?);
    let nobody = shared.forward_segments(&x, &[], &[-1; 3])?;
    assert_eq!(rows(&nobody)?, rows(&shared.forward(&x)?)?);
    Ok(())
}

/// dX and every dθ are those of layers with one adapter over the same rows.
#[test]
fn gradients_are_those_of_layers_with_one_adapter() -> Result<()> {
    let deltas = deltas();
    let base = base(DType::F32)?;
    let shared = KronLinear::from(base.clone());
    let x = candle_core::Var::from_tensor(&x((TABLE.len(), DIMS.d_in), DType::F32)?)?;
    let dy = self::x((TABLE.len(), DIMS.d_out), DType::F32)?;
    let gradients = shared.train_segments(&x, &deltas, &TABLE, None)?.mul(&dy)?.sum_all()?.backward()?;
    let dx = rows(gradients.get(&x).expect("dX"))?;
    let mut own_dx = rows(shared.forward(&x)?.mul(&dy)?.sum_all()?.backward()?.get(&x).expect("dX"))?;
    for (i, delta) in deltas.iter().enumerate() {
        let own = KronLinear::new(base.clone(), delta.clone())?;
        let all = own.forward(&x)?.mul(&dy)?.sum_all()?.backward()?;
        let of_adapter = rows(all.get(&x).expect("dX"))?;
        let places = places(i as i32);
        places.iter().for_each(|&row| own_dx[row as usize].clone_from(&of_adapter[row as usize]));
        let dtheta = gradients.get(delta.theta()).expect("of every adapter").to_vec1::<f32>()?;
        if places.is_empty() {
            assert!(i == 3 && dtheta.iter().all(|&g| g == 0.0), "adapter {i} has no row");
            continue;
        }
        let places = Tensor::new(places.as_slice(), &Device::Cpu)?;
        let [x, dy] = [x.as_tensor(), &dy].map(|all| all.index_select(&places, 0));
        let gradients = own.forward(&x?)?.mul(&dy?)?.sum_all()?.backward()?;
        let want = gradients.get(delta.theta()).expect("its own").to_vec1::<f32>()?;
        assert!(want.iter().any(|g| g.abs() > 0.1));
        assert_eq!(dtheta, want, "adapter {i}");
    }
    assert_eq!(dx, own_dx);
    Ok(())
}

/// A mask has the bits of its key, differs from none, and belongs to all rows.
#[test]
fn dropout_has_one_mask_for_the_rows_of_a_call() -> Result<()> {
    let dropout = Dropout::new(0.4).expect("a probability");
    let deltas: Vec<TrainableDelta> =
        deltas().into_iter().map(|delta| delta.with_dropout(dropout).with_stream(7)).collect();
    let base = base(DType::F32)?;
    let (shared, x) = (KronLinear::from(base.clone()), x((TABLE.len(), DIMS.d_in), DType::F32)?);
    let key = Some(DropoutKey { seed: 3, offset: 5 });
    let y = rows(&shared.train_segments(&x, &deltas, &TABLE, key)?)?;
    assert_ne!(y, rows(&shared.train_segments(&x, &deltas, &TABLE, None)?)?);
    for (row, &i) in TABLE.iter().enumerate().filter(|(_, i)| **i >= 0) {
        let own = KronLinear::new(base.clone(), deltas[i as usize].clone())?;
        assert_eq!(y[row], rows(&own.forward_with(&x, key)?)?[row], "row {row}");
    }
    let others: Vec<TrainableDelta> = (0..).zip(deltas).map(|(i, delta)| delta.with_stream(i)).collect();
    shared.train_segments(&x, &others, &TABLE, None)?;
    let error = shared.train_segments(&x, &others, &TABLE, key).expect_err("two masks").to_string();
    assert!(error.contains("m and m have different random streams, but the rows of a call share one mask"));
    Ok(())
}

#[test]
fn calls_that_do_not_fit_are_refused() -> Result<()> {
    let (layers, deltas) = (layers(), deltas());
    let entries: Vec<PoolEntry<'_>> =
        layers.iter().map(|l| PoolEntry { op: l.op(), theta: l.theta().as_slice() }).collect();
    let base = base(DType::F32)?;
    let shared = KronLinear::from(base.clone());
    let narrow = KronLinear::from(Linear::new(Tensor::zeros((24, 31), DType::F32, &Device::Cpu)?, None));
    let own = KronLinear::new(base.clone(), deltas[0].clone())?;
    let trained = candle_core::Var::from_tensor(base.weight())?;
    let trains = KronLinear::from(Linear::new(trained.as_tensor().clone(), None));
    let x = x((4, 3, DIMS.d_in), DType::F32)?;
    let wide = self::x((4, 3, 31), DType::F32)?;
    let refused = |layer: &KronLinear, x: &Tensor, table: &[i32], rule: &str| {
        for message in [
            layer.forward_segments(x, &entries, table).map(drop),
            layer.train_segments(x, &deltas, table, None).map(drop),
        ] {
            let message = message.expect_err(rule).to_string();
            assert!(message.contains(rule), "{message}");
        }
    };
    refused(&shared, &x, &[0; 3], "the table has 3 elements, but x has 12 rows, 4 in its first dimension");
    refused(&shared, &x, &[], "the table has 0 elements");
    refused(
        &shared,
        &x,
        &[0, 0, 5, 0],
        "table has adapter 5 for row 6, but a row has an adapter from 0 to 4",
    );
    refused(&shared, &x, &[0, 0, 0, -2], "table has adapter -2 for row 9");
    refused(&shared, &x, &[i32::MIN; 4], "table has adapter -2147483648 for row 0");
    refused(&shared, &wide, &[0; 4], "but the last dimension of a layer's input is d_in = 30");
    refused(&narrow, &wide, &[0; 4], "the base is 24×31, but its adapters are of 24×30");
    refused(&own, &x, &[0; 4], "the layer has the adapter m of its own, but its rows bring theirs");
    refused(&trains, &x, &[0; 4], "trains its weight, but rows of many adapters share a frozen one");
    let error = shared.forward_segments(&x, &[], &[-1, -1, 0, -1]).expect_err("no adapter").to_string();
    assert!(error.contains("the pool has no adapter"), "{error}");
    let error = shared.train_segments(&x, &[], &[-1; 4], None).expect_err("no adapter").to_string();
    assert!(error.contains("the call trains no adapter, but it needs at least one"), "{error}");
    let unfused = [deltas[0].clone().unfused()];
    let error = shared.train_segments(&x, &unfused, &[0; 4], None).expect_err("unfused").to_string();
    assert!(error.contains("m is unfused"), "{error}");
    Ok(())
}

/// An adapter of modules by name, all of 24×30, in a file of a folder.
fn pooled(
    pool: &FilePool,
    folder: &std::path::Path,
    name: &str,
    modules: &[&str],
    rank: usize,
) -> Arc<PooledAdapter> {
    let layer = |module: &&str| {
        let shape = KronShape::lora(DIMS, rank).expect("a legal shape");
        Layer::new(*module, scaling(), Theta::random(shape, name.len() as u64)).expect("a legal name")
    };
    let adapter = Adapter::new(modules.iter().map(layer).collect()).expect("layers");
    let path = folder.join(name);
    adapter.write(&path, IfExists::Refuse).expect("written");
    pool.get(&path).expect("read")
}

#[test]
fn a_batch_takes_adapters_that_fit_the_model() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pool = FilePool::new(1 << 20);
    let inject = Inject::serving();
    for module in ["a.q", "a.k"] {
        let layer = inject.wrap(base(DType::F32)?, module)?;
        assert!(layer.deltas().is_empty());
    }
    let served = inject.finish_serving()?;
    let get = |name: &str, modules: &[&str]| pooled(&pool, folder.path(), name, modules, 2);
    let adapters = [get("both", &["a.q", "a.k"]), get("q", &["a.q"]), get("other", &["a.q", "b.k"])];
    let batch = served.batch(&adapters, &[1, -1, 0, 1])?;
    assert_eq!(batch.texts(), 4);
    let names: Vec<_> =
        batch.adapters().iter().map(|a| a.path().file_name().expect("a name").to_owned()).collect();
    assert_eq!(names, ["both", "q"]);
    let error = served.batch(&adapters, &[2]).expect_err("b.k").to_string();
    assert!(error.contains("other has an adapter of b.k, but the model has no such linear layer"), "{error}");
    for (i, rule) in
        [(3, "text 1 has adapter 3, but the batch has 3 adapters"), (-2, "text 1 has adapter -2")]
    {
        let error = served.batch(&adapters, &[0, i]).expect_err("no adapter").to_string();
        assert!(error.contains(rule), "{error}");
    }
    let inject = Inject::serving();
    let narrow = Linear::new(Tensor::zeros((24, 31), DType::F32, &Device::Cpu)?, None);
    let narrow = inject.wrap(narrow, "a.q").and_then(|_| inject.finish_serving())?;
    let error = narrow.batch(&adapters, &[1]).expect_err("other sizes").to_string();
    assert!(error.contains("q has 24×30 lora r 2 for a.q, but the layer is 24×31"), "{error}");
    let error = Inject::nothing().finish_serving().expect_err("adapters of its own").to_string();
    assert!(error.contains("serving needs Inject::serving"), "{error}");
    assert!(Inject::serving().finish_serving().is_err());
    Ok(())
}
