//! [`QuantisedLinear`]: a frozen base whose weight stays in blocks.

use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Layout, Result, Tensor, bail};
use kron_adapter::gguf::Blocks;
use kron_core::{Accum, LayerDims, Operands};
use ndarray::{ArrayView2, ArrayViewMut2, s};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::base::FrozenLinear;
use crate::device_ops::range;
use crate::error::of_adapter;
use crate::product::{NewMatrix, Threads, product_of};

/// Largest number of rows of W that are dequantised at once.
const TILE: usize = 2048;
/// Least number of rows that a thread dequantises at once.
const SHARE: usize = 16;
/// Largest number of rows of x for which each row of W is used as soon as it is dequantised.
const FEW: usize = 4;

thread_local! {
    /// Memory of a tile, which the next product uses again.
    static WEIGHTS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Frozen linear layer over a quantised matrix, for float32 activations on the CPU.
///
/// Both passes dequantise at most 2048 rows of W at a time, so memory is that of the blocks and one such tile; a forward
/// pass of one to four rows, as in generation, dequantises one row at a time, into the cache of the core that uses it.
/// Products are float32, unless [`with_operands`](Self::with_operands) allows bf16; activations are not quantised.
pub struct QuantisedLinear {
    blocks: Arc<Blocks>,
    bias: Option<Vec<f32>>,
    operands: Operands,
}

impl std::fmt::Debug for QuantisedLinear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} × {} in {:?}", self.blocks.rows(), self.blocks.columns(), self.blocks.block_type())
    }
}

impl QuantisedLinear {
    /// Takes W, d_out × d_in, which layers may share, and a bias, d_out.
    ///
    /// # Errors
    /// W has no rows or no columns, or the bias has another length.
    pub fn new(blocks: impl Into<Arc<Blocks>>, bias: Option<Vec<f32>>) -> Result<Self> {
        let blocks = blocks.into();
        if blocks.rows() == 0 || blocks.columns() == 0 {
            bail!("a weight is {} × {}, but a layer has rows and columns", blocks.rows(), blocks.columns());
        }
        match bias.as_ref().map_or(blocks.rows(), Vec::len) {
            len if len == blocks.rows() => Ok(Self { blocks, bias, operands: Operands::default() }),
            len => bail!("a bias has {len} values, but its weight has {} rows", blocks.rows()),
        }
    }

    /// Sets the numbers that products multiply.
    ///
    /// bf16 is taken where that is faster: on processors with a matrix unit or AVX-512 BF16, for 32 rows of x or more. All other
    /// products stay float32.
    #[must_use]
    pub fn with_operands(self, operands: Operands) -> Self {
        Self { operands, ..self }
    }

    /// Dequantises the rows of some token ids, … × d_in, for ids of any shape.
    ///
    /// ```
    /// use candle_core::{Device, Tensor};
    /// use kron_adapter::gguf::{BlockType, Blocks};
    /// use kron_candle::QuantisedLinear;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let values: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    /// let table = QuantisedLinear::new(Blocks::new(BlockType::F32, 2, 2, values)?, None)?;
    /// let rows = table.rows(&Tensor::new(&[1u32, 0, 1], &Device::Cpu)?)?;
    /// assert_eq!(rows.to_vec2::<f32>()?, [[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// An id exceeds the rows.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        let columns = self.blocks.columns();
        let mut values = vec![0.0; ids.elem_count() * columns];
        for (id, row) in ids.flatten_all()?.to_vec1::<u32>()?.into_iter().zip(values.chunks_mut(columns)) {
            let id = id as usize;
            self.blocks.dequantise(id..id.saturating_add(1), row).map_err(of_adapter)?;
        }
        Tensor::from_vec(values, [ids.dims(), &[columns]].concat(), ids.device())
    }

    /// Calls `take` with each tile of W, and the numbers of its rows.
    fn tiles(&self, mut take: impl FnMut(Range<usize>, ArrayView2<f32>) -> Result<()>) -> Result<()> {
        let LayerDims { d_out, d_in } = self.dims();
        // Taken out, for a thread that waits within a product may begin another.
        let mut weights = WEIGHTS.take();
        weights.resize(TILE.min(d_out) * d_in, 0.0);
        for first in (0..d_out).step_by(TILE) {
            let rows = first..d_out.min(first + TILE);
            let weights = &mut weights[..rows.len() * d_in];
            let each = weights.par_chunks_mut(d_in).zip(rows.clone()).with_min_len(SHARE);
            each.try_for_each(|(weights, row)| self.blocks.dequantise(row..row + 1, weights))
                .map_err(of_adapter)?;
            take(rows, matrix_of(weights, d_in)?)?;
        }
        WEIGHTS.set(weights);
        Ok(())
    }

    /// Computes x·Wᵀ for a few rows of x, without the packing of a large product.
    ///
    /// A thread dequantises a row of W and multiplies it with all rows of x. The order of the sums is that of one row,
    /// whatever the number of threads.
    fn few_rows(&self, x: ArrayView2<f32>) -> Result<Vec<f32>> {
        let LayerDims { d_out, d_in } = self.dims();
        let (rows, x) = (x.nrows(), x.to_slice().unwrap_or_default());
        let mut columns = vec![0.0; d_out * rows]; // [d_out, rows]
        let shares = columns.par_chunks_mut(SHARE * rows).enumerate();
        shares
            .try_for_each_init(
                || vec![0.0; d_in],
                |w, (share, columns)| {
                    for (i, y) in columns.chunks_mut(rows).enumerate() {
                        let row = share * SHARE + i;
                        self.blocks.dequantise(row..row + 1, w)?;
                        for (y, x) in y.iter_mut().zip(x.chunks(d_in)) {
                            *y = pulp::Arch::new().dispatch(Dot(w, x));
                        }
                    }
                    Ok(())
                },
            )
            .map_err(of_adapter)?;
        if rows == 1 {
            return Ok(columns);
        }
        let value = |i: usize| columns[i % d_out * rows + i / d_out];
        Ok((0..columns.len()).map(value).collect())
    }
}

impl FrozenLinear for QuantisedLinear {
    fn dims(&self) -> LayerDims {
        LayerDims { d_out: self.blocks.rows(), d_in: self.blocks.columns() }
    }

    fn cpu_forward(&self, x: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let LayerDims { d_out, d_in } = self.dims();
        let x = matrix(x, layout, d_in)?;
        if (1..=FEW).contains(&x.nrows()) {
            let mut values = self.few_rows(x)?;
            for y in values.chunks_mut(d_out) {
                y.iter_mut().zip(self.bias.iter().flatten()).for_each(|(y, bias)| *y += bias);
            }
            return Ok(CpuStorage::F32(values));
        }
        let mut y = NewMatrix::new(x.nrows(), d_out);
        self.tiles(|_, w| y.push(self.operands, x, w.t()))?;
        let mut values = y.finish()?;
        if let Some(bias) = &self.bias {
            let rows = values.par_chunks_mut(d_out);
            rows.for_each(|y| y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
        }
        Ok(CpuStorage::F32(values))
    }

    fn cpu_backward(&self, dy: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let LayerDims { d_out, d_in } = self.dims();
        let dy = matrix(dy, layout, d_out)?;
        let mut values = Vec::new();
        self.tiles(|rows, w| {
            let first = rows.start == 0;
            let dy = dy.slice(s![.., rows]);
            if first {
                let mut dx = NewMatrix::new(dy.nrows(), d_in);
                dx.push(self.operands, dy, w)?;
                values = dx.finish()?;
                return Ok(());
            }
            product_of(self.operands, matrix_mut(&mut values, d_in)?, Accum::Add, dy, w, Threads::All)
        })?;
        Ok(CpuStorage::F32(values))
    }

    fn cpu_backward_add(&self, dy: &CpuStorage, layout: &Layout, dx: &mut CpuStorage) -> Result<()> {
        let LayerDims { d_out, d_in } = self.dims();
        let dy = matrix(dy, layout, d_out)?;
        let CpuStorage::F32(dx) = dx else {
            bail!("a gradient is {:?}, but a quantised layer's is f32", dx.dtype());
        };
        self.tiles(|rows, w| {
            let dy = dy.slice(s![.., rows]);
            product_of(self.operands, matrix_mut(dx, d_in)?, Accum::Add, dy, w, Threads::All)
        })
    }
}

/// Σ a·b of equal lengths, in four vectors of partial sums, whose length is the processor's.
struct Dot<'a>(&'a [f32], &'a [f32]);

impl WithSimd for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(self.0), S::as_simd_f32s(self.1));
        let ((a, a_odd), (b, b_odd)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
        let mut sums = [simd.splat_f32s(0.0); 4];
        for (a, b) in a.iter().zip(b) {
            for i in 0..4 {
                sums[i] = simd.mul_add_e_f32s(a[i], b[i], sums[i]);
            }
        }
        for (i, (a, b)) in a_odd.iter().zip(b_odd).enumerate() {
            sums[i] = simd.mul_add_e_f32s(*a, *b, sums[i]);
        }
        let [s0, s1, s2, s3] = sums;
        let sum = simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(s0, s1), simd.add_f32s(s2, s3)));
        a_rest.iter().zip(b_rest).fold(sum, |sum, (a, b)| sum + a * b)
    }
}

/// Views a contiguous float32 operand, … × width, as a matrix.
fn matrix<'a>(storage: &'a CpuStorage, layout: &Layout, width: usize) -> Result<ArrayView2<'a, f32>> {
    let CpuStorage::F32(values) = storage else {
        bail!("activations are {:?}, but a quantised layer takes f32", storage.dtype());
    };
    matrix_of(&values[range(layout)?], width)
}

fn matrix_of(values: &[f32], width: usize) -> Result<ArrayView2<'_, f32>> {
    let rows = values.len() / width.max(1);
    ArrayView2::from_shape((rows, width), values).map_err(candle_core::Error::wrap)
}

fn matrix_mut(values: &mut [f32], width: usize) -> Result<ArrayViewMut2<'_, f32>> {
    let rows = values.len() / width.max(1);
    ArrayViewMut2::from_shape((rows, width), values).map_err(candle_core::Error::wrap)
}
