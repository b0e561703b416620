//! Factors of foreign files as matrices.

use crate::elements::first_not_finite;
use crate::{Error, Result, Tensors};

/// A row-major float32 matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
}

impl Matrix {
    /// Reads a tensor of two dimensions.
    ///
    /// # Errors
    /// Fails on other dimensions, and on a value that is not finite or that float32
    /// does not hold exactly.
    pub fn read(tensors: &Tensors, name: &str) -> Result<Self> {
        let refused = |what: String| Error::data(format!("{}: {name} {what}", tensors.path()));
        let shape = &tensors.info(name)?.shape;
        let &[rows, cols] = &shape[..] else {
            return Err(refused(format!(
                "has shape {shape:?}, but a factor of a linear layer has 2 dimensions; convolutions are not supported"
            )));
        };
        let data = match tensors.values_f32(name)? {
            Some(data) => data,
            None => {
                let wide = tensors.values_f64(name)?;
                let lost = wide.iter().position(|&v| v.is_finite() && f64::from(v as f32) != v);
                if let Some(at) = lost.filter(|&at| (wide[at] as f32).is_finite()) {
                    let v = wide[at];
                    return Err(refused(format!("has {v} at {at}, which float32 does not hold exactly")));
                }
                wide.into_iter().map(|v| v as f32).collect()
            }
        };
        if let Some(at) = first_not_finite(&data) {
            let v = data[at];
            return Err(refused(format!(
                "has {v} at {at}, but every value of a factor is finite in float32"
            )));
        }
        Ok(Self { rows, cols, data })
    }

    /// Returns self·other, summed in float64 and rounded once.
    pub fn product(&self, other: &Self) -> Self {
        let (rows, cols) = (self.rows, other.cols);
        let entry = |at: usize| {
            let (row, col) = (at / cols, at % cols);
            let left = &self.data[row * self.cols..][..self.cols];
            let right = other.data[col..].iter().step_by(cols);
            left.iter().zip(right).map(|(l, r)| f64::from(*l) * f64::from(*r)).sum::<f64>() as f32
        };
        Self { rows, cols, data: (0..rows * cols).map(entry).collect() }
    }
}
