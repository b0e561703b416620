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
        let data = match tensors.singles(name)? {
            Some(data) => data,
            None => {
                let wide = tensors.numbers(name)?;
                let lost = wide.iter().position(|&v| v.is_finite() && f64::from(v as f32) != v);
                if let Some(at) = lost.filter(|&at| (wide[at] as f32).is_finite()) {
                    let v = wide[at];
                    return Err(refused(format!("has {v} at {at}, which float32 does not hold exactly")));
                }
                wide.into_iter().map(|v| v as f32).collect()
            }
        };
        // Without a branch for each number.
        if !data.iter().fold(true, |all, v| all & v.is_finite())
            && let Some(at) = data.iter().position(|v| !v.is_finite())
        {
            let v = data[at];
            return Err(refused(format!(
                "has {v} at {at}, but every number of a factor is finite in float32"
            )));
        }
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
