//! cuBLASLt's product: D = α·op(A)·op(B) + β·C, column-major, summed in float32.

use cudarc::driver::sys::CUresult;
use half::{bf16, f16};
use kron_core::Dtype;
use ndarray::{Array2, ArrayView2, ShapeBuilder};

use crate::Done;
use crate::memory::Memory;

/// An operand as it is stored; in product i of a batch it starts i·step elements later.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub start: u64,
    pub dtype: Dtype,
    pub rows: usize,
    pub cols: usize,
    /// Elements between the starts of neighbouring columns.
    pub stride: usize,
    pub step: usize,
    pub transposed: bool,
}

/// A batch of products; C is D.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub alpha: f32,
    pub beta: f32,
    pub a: Operand,
    pub b: Operand,
    pub d: Operand,
    pub batch: usize,
}

impl Operand {
    /// Rows and columns after the transposition.
    pub const fn dim(&self) -> (usize, usize) {
        if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    /// Elements from the first to the last.
    const fn reach(&self) -> usize {
        if self.rows == 0 || self.cols == 0 { 0 } else { (self.cols - 1) * self.stride + self.rows }
    }

    fn at(&self, product: usize) -> u64 {
        self.start + (product * self.step * self.dtype.size()) as u64
    }

    /// Returns the elements of one product as they are stored.
    fn load(&self, memory: &Memory, product: usize) -> Done<Array2<f32>> {
        let bytes = memory.read(self.at(product), self.reach() * self.dtype.size())?;
        let values: Vec<f32> = match self.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::Bf16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        };
        let shape = (self.rows, self.cols).strides((1, self.stride));
        let view = ArrayView2::from_shape(shape, &values).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
        Ok(view.to_owned())
    }

    fn store(&self, memory: &Memory, product: usize, values: &Array2<f32>) -> Done {
        for (i, column) in values.columns().into_iter().enumerate() {
            let bytes: Vec<u8> = match self.dtype {
                Dtype::F32 => column.iter().flat_map(|v| v.to_le_bytes()).collect(),
                Dtype::F16 => column.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
                Dtype::Bf16 => column.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
            };
            memory.write(self.at(product) + (i * self.stride * self.dtype.size()) as u64, &bytes)?;
        }
        Ok(())
    }
}

impl Product {
    pub fn run(&self, memory: &Memory) -> Done {
        for product in 0..self.batch {
            let (a, b) = (self.a.load(memory, product)?, self.b.load(memory, product)?);
            let a = if self.a.transposed { a.t() } else { a.view() };
            let b = if self.b.transposed { b.t() } else { b.view() };
            let mut d = a.dot(&b) * self.alpha;
            // As in BLAS, with beta = 0 the old values are not read.
            if self.beta != 0.0 {
                d.scaled_add(self.beta, &self.d.load(memory, product)?);
            }
            self.d.store(memory, product, &d)?;
        }
        Ok(())
    }
}
