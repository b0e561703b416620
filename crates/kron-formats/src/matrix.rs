//! One factor of a foreign file.

use crate::{Error, Result, Tensors};

/// Row-major float32.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub data: Vec<f32>,
}

impl Matrix {
    /// A tensor with two dimensions and finite numbers that float32 holds exactly.
    pub fn read(tensors: &Tensors, name: &str) -> Result<Self> {
        let refused = |what: String| Error::data(format!("{}: {name} {what}", tensors.path()));
        let shape = &tensors.info(name)?.shape;
        let &[rows, cols] = &shape[..] else {
            return Err(refused(format!(
                "has shape {shape:?}, but a factor of a linear layer has 2 dimensions; convolutions are not supported"
            )));
        };
        let narrow = |(at, v): (usize, f64)| {
            let number = v as f32;
            if !number.is_finite() {
                return Err(refused(format!(
                    "has {v} at {at}, but every number of a factor is finite in float32"
                )));
            }
            if f64::from(number) != v {
                return Err(refused(format!("has {v} at {at}, which float32 does not hold exactly")));
            }
            Ok(number)
        };
        let data = tensors.numbers(name)?.into_iter().enumerate().map(narrow).collect::<Result<_>>()?;
        Ok(Self { rows, cols, data })
    }

    /// self·other, summed in float64 and rounded once.
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
