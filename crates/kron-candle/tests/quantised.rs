//! A quantised base beside the same matrix dequantised.

use std::sync::Arc;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::Linear;
use kron_adapter::gguf::{BlockType, Blocks};
use kron_candle::{
    Accum, KronLinear, KronShape, LayerDims, Operands, QuantisedLinear, ScaleRule, Scaling, Split,
    TrainableDelta,
};
use kron_core::matrix_unit_product;
use ndarray::{Array1, Array2, ArrayView2};

const TYPES: [BlockType; 13] = [
    BlockType::F32,
    BlockType::F16,
    BlockType::Bf16,
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Q2K,
    BlockType::Q3K,
    BlockType::Q4K,
    BlockType::Q5K,
    BlockType::Q6K,
];

/// Makes a matrix of arbitrary blocks with finite scales, and the same values in float32.
fn matrix(block_type: BlockType, rows: usize) -> Result<(Blocks, Tensor)> {
    let columns = 2 * block_type.values().max(32);
    let len = rows * columns / block_type.values() * block_type.bytes();
    // No byte has all bits of a float16's or float32's exponent set, so no scale is infinite.
    let bytes: Vec<u8> = (0..len).map(|i| ((i * 2_654_435_761) >> 7) as u8 & 0b1011_1011).collect();
    let blocks = Blocks::new(block_type, rows, columns, bytes).map_err(candle_core::Error::wrap)?;
    let mut values = vec![0.0; rows * columns];
    blocks.dequantise(0..rows, &mut values).map_err(candle_core::Error::wrap)?;
    assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|&v| v != 0.0), "{block_type:?}");
    Ok((blocks, Tensor::from_vec(values, (rows, columns), &Device::Cpu)?))
}

fn largest(tensor: &Tensor) -> Result<f32> {
    tensor.abs()?.max_all()?.to_scalar()
}

/// Output and gradients of every kind of blocks are those of the dequantised layer, to float32's rounding.
#[test]
fn outputs_and_gradients_are_the_dequantised_layers() -> Result<()> {
    for (i, block_type) in TYPES.into_iter().enumerate() {
        let (blocks, dense) = matrix(block_type, 300)?;
        let (d_out, d_in) = dense.dims2()?;
        let bias: Vec<f32> = (0..d_out).map(|i| i as f32 - 9.0).collect();
        let quantised = QuantisedLinear::new(blocks, Some(bias.clone()))?;
        let linear = Linear::new(dense, Some(Tensor::new(bias, &Device::Cpu)?));
        let shape = KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 4, a_in: 2 }, 4);
        let scaling = Scaling::new(8.0, 4, ScaleRule::AlphaOverR).map_err(candle_core::Error::wrap)?;
        let shape = shape.map_err(candle_core::Error::wrap)?;
        let delta = TrainableDelta::new("m", shape, scaling, i as u64, &Device::Cpu)?;
        let x = Var::from_tensor(&Tensor::randn(0f32, 1.0, (3, 7, d_in), &Device::Cpu)?)?;
        let base: Arc<QuantisedLinear> = Arc::new(quantised);
        let pairs = [
            (KronLinear::over(base.clone(), delta.clone())?, KronLinear::new(linear.clone(), delta.clone())?),
            (KronLinear::frozen(base), KronLinear::from(linear)),
        ];
        for (ours, theirs) in pairs {
            let (y, want) = (Module::forward(&ours, &x)?, Module::forward(&theirs, &x)?);
            let scale = largest(&want)?;
            assert!(largest(&(&y - &want)?)? <= 1e-5 * scale, "{block_type:?}");
            let (ours, theirs) = (y.sum_all()?.backward()?, want.sum_all()?.backward()?);
            let vars = [Some(&x), theirs.get(delta.theta()).map(|_| delta.theta())];
            for var in vars.into_iter().flatten() {
                let (got, want) = (ours.get(var).expect("a gradient"), theirs.get(var).expect("a gradient"));
                assert!(largest(&(got - want)?)? <= 2e-5 * largest(want)?, "{block_type:?}");
            }
        }
    }
    Ok(())
}

/// Draws values between -1 and 1.
fn values(rows: usize, columns: usize, seed: u32) -> Array2<f32> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, columns), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn array(tensor: &Tensor) -> Result<Array2<f32>> {
    let values = tensor.flatten_all()?.to_vec1()?;
    Array2::from_shape_vec(tensor.dims2()?, values).map_err(candle_core::Error::wrap)
}

fn tensor(array: &Array2<f32>) -> Result<Tensor> {
    Tensor::from_iter(array.iter().copied(), &Device::Cpu)?.reshape(array.dim())
}

/// Returns y of a layer, and dX of `dy`.
fn passes(layer: QuantisedLinear, x: &Array2<f32>, dy: &Array2<f32>) -> Result<[Array2<f32>; 2]> {
    let x = Var::from_tensor(&tensor(x)?)?;
    let y = KronLinear::frozen(Arc::new(layer)).forward_with(&x, None)?;
    let gradients = (&y * tensor(dy)?)?.sum_all()?.backward()?;
    Ok([array(&y)?, array(gradients.get(&x).expect("a gradient"))?])
}

/// Compares with the product in float64 within the rounding of a float32 sum of so many products, and a bias.
fn near_product(got: &Array2<f32>, x: &Array2<f32>, w: ArrayView2<f32>, bias: &Array1<f32>) {
    let wide = |v: &f32| f64::from(*v);
    let exact = x.map(wide).dot(&w.map(wide)) + bias.map(wide);
    let size = x.map(|v| wide(v).abs()).dot(&w.map(|v| wide(v).abs())) + bias.map(|v| wide(v).abs());
    let terms = (1.1 * w.nrows() as f64 + 8.0) * f64::from(f32::EPSILON) / 2.0;
    for (at, got) in got.indexed_iter() {
        let (error, bound) = ((wide(got) - exact[at]).abs(), terms * size[at]);
        assert!(error <= bound, "{at:?}: {got}, not {}: {error:e} of {bound:e}", exact[at]);
    }
}

/// A matrix of two whole tiles of 1024 rows and a part of one, for enough rows of x that a matrix unit is used.
#[test]
fn several_tiles_are_the_dequantised_layer() -> Result<()> {
    let (rows, d_out) = (40, 2 * 1024 + 7);
    for block_type in [BlockType::Bf16, BlockType::Q4_1] {
        let (blocks, dense) = matrix(block_type, d_out)?;
        let (w, bias) = (array(&dense)?, values(1, d_out, 1).row(0).to_owned());
        let (x, dy) = (values(rows, w.ncols(), 2), values(rows, d_out, 3));
        let layer = QuantisedLinear::new(blocks, Some(bias.to_vec()))?;
        let [y, dx] = passes(layer, &x, &dy)?;
        near_product(&y, &x, w.t(), &bias);
        near_product(&dx, &dy, w.view(), &Array1::zeros(w.ncols()));
    }
    Ok(())
}

/// Products of bf16 operands are those of the rounded operands where a unit multiplies such numbers, and float32 elsewhere.
#[test]
fn operands_are_rounded_where_a_unit_multiplies_bf16() -> Result<()> {
    let (blocks, dense) = matrix(BlockType::Q4_1, 320)?;
    let w = array(&dense)?;
    let (x, dy) = (values(40, w.ncols(), 4), values(40, w.nrows(), 5));
    let run = |operands| passes(QuantisedLinear::new(blocks.clone(), None)?.with_operands(operands), &x, &dy);
    let (float, short) = (run(Operands::Float32)?, run(Operands::Bf16)?);
    let mut y = Array2::zeros((x.nrows(), w.nrows()));
    if !matrix_unit_product(y.view_mut(), Accum::Replace, x.view(), w.t(), Operands::Bf16, false) {
        assert_eq!(short, float);
        return Ok(());
    }
    let rounded = |matrix: &Array2<f32>| matrix.mapv(|v| half::bf16::from_f32(v).to_f32());
    let [x, dy, w] = [&x, &dy, &w].map(rounded);
    near_product(&short[0], &x, w.t(), &Array1::zeros(w.nrows()));
    near_product(&short[1], &dy, w.view(), &Array1::zeros(w.ncols()));
    for (short, float) in short.iter().zip(&float) {
        assert_ne!(short, float);
    }
    Ok(())
}

/// One to five rows are on both sides of the way for a few; the bits do not depend on the number of threads.
#[test]
fn a_few_rows_are_the_dequantised_layers() -> Result<()> {
    for block_type in TYPES {
        let (blocks, dense) = matrix(block_type, 83)?;
        let bias: Vec<f32> = (0..83).map(|i| i as f32 - 9.0).collect();
        let quantised = KronLinear::frozen(Arc::new(QuantisedLinear::new(blocks, Some(bias.clone()))?));
        let linear = Linear::new(dense.clone(), Some(Tensor::new(bias, &Device::Cpu)?));
        for rows in 1..=5 {
            let x = Tensor::randn(0f32, 1.0, (rows, dense.dim(1)?), &Device::Cpu)?;
            let want = linear.forward(&x)?;
            let on = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.expect("threads").install(|| quantised.forward_with(&x, None)?.to_vec2::<f32>())
            };
            let (one, three) = (on(1)?, on(3)?);
            let off = largest(&(Tensor::new(one.clone(), &Device::Cpu)? - &want)?)?;
            assert!(off <= 1e-5 * largest(&want)?, "{block_type:?}, {rows} rows: {off}");
            assert!(one == three, "{block_type:?}, {rows} rows");
        }
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let (blocks, dense) = matrix(BlockType::Q8_0, 8)?;
    let wrong = QuantisedLinear::new(blocks.clone(), Some(vec![0.0; 7])).expect_err("7 of 8");
    assert!(wrong.to_string().starts_with("a bias has 7 values, but its weight has 8 rows"), "{wrong}");
    let layer = KronLinear::frozen(Arc::new(QuantisedLinear::new(blocks.clone(), None)?));
    let half = Tensor::zeros((2, dense.dim(1)?), DType::BF16, &Device::Cpu)?;
    assert!(layer.forward_with(&half, None).expect_err("bf16").to_string().contains("BF16"));
    let narrow = Tensor::zeros((2, 5), DType::F32, &Device::Cpu)?;
    assert!(layer.forward_with(&narrow, None).expect_err("5 columns").to_string().contains("d_in = 64"));
    assert!(layer.merge().is_err());
    let table = QuantisedLinear::new(blocks, None)?;
    assert!(table.rows(&Tensor::new(&[8u32], &Device::Cpu)?).is_err());
    let row = table.rows(&Tensor::new(&[[3u32], [0]], &Device::Cpu)?)?;
    assert_eq!(row.dims(), [2, 1, 64]);
    assert_eq!(largest(&(row.narrow(0, 0, 1)?.reshape((1, 64))? - dense.narrow(0, 3, 1)?)?)?, 0.0);
    Ok(())
}
