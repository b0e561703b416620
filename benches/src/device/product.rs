//! A product of two strided matrices, as data.

use kron_core::{Error, Result};

use super::buffer::Buffer;

/// A row-major matrix inside a buffer, one for each product of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// The buffer that holds it.
    pub buffer: Buffer,
    /// Elements before it.
    pub offset: usize,
    /// Elements from one stored row to the next.
    pub width: usize,
    /// Elements from one product of a batch to the next.
    pub step: usize,
    /// True if it is stored as its transpose.
    pub transposed: bool,
}

impl Operand {
    /// Makes a matrix at the start of a buffer whose rows start `width` apart, the same in a whole batch.
    pub const fn new(buffer: Buffer, width: usize) -> Self {
        Self { buffer, offset: 0, width, step: 0, transposed: false }
    }

    /// Returns its transpose, without a copy.
    pub const fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Moves it by `step` elements in each product of a batch.
    pub const fn step(self, step: usize) -> Self {
        Self { step, ..self }
    }

    /// Starts it at `offset`.
    pub const fn at(self, offset: usize) -> Self {
        Self { offset, ..self }
    }
}

/// C (+)= alpha·A·B, `batch` times: A is m × k, B k × n, C m × n.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
    pub alpha: f32,
    /// True to add to C; else C is written and never read.
    pub add: bool,
    pub a: Operand,
    pub b: Operand,
    pub c: Operand,
}

impl Product {
    /// Makes C = A·B.
    pub const fn new((m, n, k): (usize, usize, usize), a: Operand, b: Operand, c: Operand) -> Self {
        Self { m, n, k, batch: 1, alpha: 1.0, add: false, a, b, c }
    }

    /// Multiplies the product by `alpha`.
    pub const fn times(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }

    /// Adds the product to C.
    pub const fn added(self) -> Self {
        Self { add: true, ..self }
    }

    /// Makes `batch` products; in product i each operand starts at offset + i·step.
    pub const fn batch(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    /// Returns the product as a BLAS takes it, whose matrices are column-major.
    pub const fn column_major(&self) -> Gemm {
        // Row-major C is column-major Cᵀ, and Cᵀ = Bᵀ·Aᵀ.
        Gemm {
            m: self.n,
            n: self.m,
            k: self.k,
            batch: self.batch,
            alpha: self.alpha,
            beta: if self.add { 1.0 } else { 0.0 },
            operands: [self.b, self.a, self.c],
        }
    }

    /// Returns the buffers, with the length that the product needs each to have.
    pub fn reach(&self) -> [(Buffer, usize); 3] {
        let gemm = self.column_major();
        [0, 1, 2].map(|i| {
            let ((rows, cols), o) = (gemm.stored(i), gemm.operands[i]);
            let last = (gemm.batch.max(1) - 1) * o.step + (cols.max(1) - 1) * o.width;
            (o.buffer, o.offset + last + rows)
        })
    }

    /// Fails unless every operand lies inside its buffer of `len` elements and a BLAS takes the product.
    ///
    /// # Errors
    /// Fails for an illegal product: a legal one accesses its operands alone.
    pub fn check(&self, len: impl Fn(Buffer) -> usize) -> Result<()> {
        let gemm = self.column_major();
        let small = |size: usize| (1..1 << 31).contains(&size);
        let sizes = [self.m, self.n, self.k, self.batch].into_iter().all(small);
        let rows =
            (0..3).all(|i| small(gemm.operands[i].width) && gemm.operands[i].width >= gemm.stored(i).0);
        // In a batch no two products may write the same element.
        let disjoint = self.batch == 1 || self.c.step >= self.n;
        let inside = self.reach().into_iter().all(|(buffer, reach)| reach <= len(buffer));
        let output_is_separate = self.a.buffer != self.c.buffer && self.b.buffer != self.c.buffer;
        if sizes && rows && disjoint && inside && output_is_separate {
            return Ok(());
        }
        Err(Error::Shape(format!("{self:?} does not fit its operands")))
    }
}

/// C = alpha·op(A)·op(B) + beta·C, `batch` times, column-major: A is m × k, B k × n, C m × n.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub batch: usize,
    pub alpha: f32,
    pub beta: f32,
    /// A, B and C; `width` is the distance of their stored columns.
    pub operands: [Operand; 3],
}

impl Gemm {
    /// Returns the rows and columns of operand 0 … 2 as it is stored.
    pub const fn stored(&self, operand: usize) -> (usize, usize) {
        let (rows, cols) = match operand {
            0 => (self.m, self.k),
            1 => (self.k, self.n),
            _ => (self.m, self.n),
        };
        if self.operands[operand].transposed { (cols, rows) } else { (rows, cols) }
    }
}
