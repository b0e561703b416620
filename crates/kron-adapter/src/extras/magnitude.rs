//! Magnitudes of DoRA (arXiv 2402.09353), which rescale the rows or the columns of W + ΔW.

use crate::{Error, Result, Tensors, text};

/// Norms that a magnitude replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// One for each output, over the inputs.
    OfOutputs,
    /// One for each input, over the outputs.
    OfInputs,
}

/// Magnitude m of one layer: W' = m·(W + ΔW)/(‖W + ΔW‖ + ε), row by row or column by column.
///
/// PEFT has ε = 0, LyCORIS the distance of 1 to the next float32.
#[derive(Clone, Debug, PartialEq)]
pub struct Magnitude {
    values: Vec<f32>,
    norm: Norm,
    epsilon: f64,
}

impl Magnitude {
    /// Makes a magnitude of one value for each output or input.
    pub const fn new(values: Vec<f32>, norm: Norm, epsilon: f64) -> Self {
        Self { values, norm, epsilon }
    }

    /// Reads a vector: [n] and [n, 1] have a value for each output, [1, n] one for each input.
    pub(super) fn read(tensors: &Tensors, name: &str, epsilon: f64) -> Result<Self> {
        let shape = &tensors.info(name)?.shape;
        let norm = match shape[..] {
            [_] => Norm::OfOutputs,
            [_, ref rest @ ..] if !rest.is_empty() && rest.iter().all(|dim| *dim == 1) => Norm::OfOutputs,
            [1, _, ref rest @ ..] if rest.iter().all(|dim| *dim == 1) => Norm::OfInputs,
            _ => {
                return Err(Error::data(format!(
                    "{}: {} is {shape:?}, but a magnitude of DoRA is one row or one column",
                    tensors.path(),
                    text::name(name)
                )));
            }
        };
        Ok(Self::new(tensors.finite_f32(name, "a magnitude")?, norm, epsilon))
    }

    /// Returns the magnitude of an embedding's rows × columns, of which the values are one for each column.
    pub(super) fn of_columns(self) -> Self {
        Self { norm: Norm::OfInputs, ..self }
    }

    /// Returns m.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Returns the norms that it replaces.
    pub const fn norm(&self) -> Norm {
        self.norm
    }

    /// Returns the factor m / (√sum + ε) of the row or column `index`, whose squares have this sum.
    pub fn factor(&self, index: usize, sum_of_squares: f64) -> f64 {
        f64::from(self.values[index]) / (sum_of_squares.sqrt() + self.epsilon)
    }
}
