//! The blocks of one matrix, and their values.

use std::ops::Range;

use bytes::Bytes;
use half::bf16;
use kron_core::Element;
use pulp::{Simd, WithSimd};

use super::block_type::BlockType;
use super::{k_quants, quants};
use crate::elements::decode;
use crate::{Error, Result};

/// A matrix in blocks, rows × columns; every row is a whole number of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    block_type: BlockType,
    rows: usize,
    columns: usize,
    bytes: Bytes,
}

impl Blocks {
    /// Takes the bytes of a matrix: a vector, or [`Bytes`] that are shared or of a memory map.
    ///
    /// # Errors
    /// Fails if a row is not a whole number of blocks, and if the bytes are not those of the shape.
    pub fn new(block_type: BlockType, rows: usize, columns: usize, bytes: impl Into<Bytes>) -> Result<Self> {
        let (row, bytes) = (row_bytes(block_type, columns)?, bytes.into());
        match row.checked_mul(rows) {
            Some(len) if len == bytes.len() => Ok(Self { block_type, rows, columns, bytes }),
            _ => Err(Error::data(format!("{} bytes are given for {rows} rows of {row} bytes", bytes.len()))),
        }
    }

    /// Kind of the blocks.
    pub const fn block_type(&self) -> BlockType {
        self.block_type
    }

    /// Number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Dequantises some rows into `to`, row after row.
    ///
    /// # Errors
    /// Fails if the rows exceed the matrix, and if `to` has another number of values.
    pub fn dequantise(&self, rows: Range<usize>, to: &mut [f32]) -> Result<()> {
        if rows.start > rows.end || rows.end > self.rows {
            let all = self.rows;
            return Err(Error::usage(format!("rows {rows:?} are wanted of a matrix of {all} rows")));
        }
        if to.len() != rows.len() * self.columns {
            return Err(Error::usage(format!(
                "{} values are to take {} rows of {} columns",
                to.len(),
                rows.len(),
                self.columns
            )));
        }
        let row = self.columns / self.block_type.values() * self.block_type.bytes();
        dequantise(self.block_type, &self.bytes[rows.start * row..rows.end * row], to);
        Ok(())
    }

    /// Returns the matrix whose row i is row `from(i)` of this one; blocks are copied as they are.
    ///
    /// # Errors
    /// Fails if a row exceeds the matrix.
    pub fn with_rows(&self, from: impl Fn(usize) -> usize) -> Result<Self> {
        let row = self.bytes.len() / self.rows.max(1);
        let mut bytes = Vec::with_capacity(self.bytes.len());
        for i in 0..self.rows {
            let from = from(i);
            if from >= self.rows {
                let all = self.rows;
                return Err(Error::usage(format!("row {from} is wanted of a matrix of {all} rows")));
            }
            bytes.extend_from_slice(&self.bytes[from * row..][..row]);
        }
        Ok(Self { bytes: bytes.into(), ..*self })
    }
}

/// Returns the bytes of a row.
pub(super) fn row_bytes(block_type: BlockType, columns: usize) -> Result<usize> {
    let (values, name) = (block_type.values(), block_type.name());
    if !columns.is_multiple_of(values) {
        return Err(Error::data(format!(
            "{columns} columns are not a multiple of {values}, the length of a {name} block"
        )));
    }
    let bytes = (columns / values).checked_mul(block_type.bytes());
    bytes.ok_or_else(|| Error::data(format!("{columns} columns of {name} exceed the address space")))
}

/// Dequantises whole blocks; `to` has their number of values.
fn dequantise(block_type: BlockType, bytes: &[u8], to: &mut [f32]) {
    pulp::Arch::new().dispatch(Dequantise { block_type, bytes, to });
}

/// Operation that is compiled for each instruction set: all that it calls is inlined, which a closure would not be.
struct Dequantise<'a> {
    block_type: BlockType,
    bytes: &'a [u8],
    to: &'a mut [f32],
}

impl WithSimd for Dequantise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { block_type, bytes, to } = self;
        /// Calls a function with each block, of a length that the compiler knows; as an argument it would be a call.
        macro_rules! each {
            ($type:ident, $block:path) => {{
                let blocks = bytes.as_chunks::<{ BlockType::$type.bytes() }>().0;
                let values = to.as_chunks_mut::<{ BlockType::$type.values() }>().0;
                for (bytes, to) in blocks.iter().zip(values) {
                    $block(bytes, to);
                }
            }};
        }
        match block_type {
            BlockType::F32 => plain::<f32>(bytes, to),
            BlockType::F16 => each!(F16, quants::f16),
            BlockType::Bf16 => plain::<bf16>(bytes, to),
            BlockType::Q4_0 => each!(Q4_0, quants::q4_0),
            BlockType::Q4_1 => each!(Q4_1, quants::q4_1),
            BlockType::Q5_0 => each!(Q5_0, quants::q5_0),
            BlockType::Q5_1 => each!(Q5_1, quants::q5_1),
            BlockType::Q8_0 => each!(Q8_0, quants::q8_0),
            BlockType::Q2K => each!(Q2K, k_quants::q2),
            BlockType::Q3K => each!(Q3K, k_quants::q3),
            BlockType::Q4K => each!(Q4K, k_quants::q4),
            BlockType::Q5K => each!(Q5K, k_quants::q5),
            BlockType::Q6K => each!(Q6K, k_quants::q6),
        }
    }
}

#[inline(always)]
fn plain<E: Element>(bytes: &[u8], to: &mut [f32]) {
    for (to, v) in to.iter_mut().zip(decode::<E>(bytes)) {
        *to = v.to_f32();
    }
}
