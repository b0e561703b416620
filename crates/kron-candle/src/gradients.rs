//! Gradients of a list of variables: summed over micro-batches, measured, clipped.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// One gradient for every variable of a list, in the list's order.
#[derive(Clone, Debug)]
pub struct Gradients {
    vars: Vec<Var>,
    sums: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Nothing yet for these variables.
    pub fn new(vars: &[Var]) -> Self {
        Self { vars: vars.to_vec(), sums: vec![None; vars.len()] }
    }

    /// Adds what one backward pass gave, times `weight`: the share of its batch.
    ///
    /// # Errors
    /// What candle refuses.
    pub fn add(&mut self, store: &GradStore, weight: f64) -> Result<()> {
        for (var, sum) in self.vars.iter().zip(&mut self.sums) {
            let Some(grad) = store.get(var) else { continue };
            let grad = if weight == 1.0 { grad.clone() } else { (grad * weight)? };
            *sum = Some(match sum.take() {
                Some(sum) => (sum + grad)?,
                None => grad,
            });
        }
        Ok(())
    }

    /// The root of the sum of the squares of all numbers.
    ///
    /// # Errors
    /// What candle refuses.
    pub fn norm(&self) -> Result<f64> {
        let mut square = 0.0;
        for grad in self.sums.iter().flatten() {
            square +=
                f64::from(grad.sqr()?.sum_all()?.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?);
        }
        Ok(square.sqrt())
    }

    /// Shortens the gradient to `max` where it is longer; returns the length
    /// that it had.
    ///
    /// # Errors
    /// What candle refuses.
    pub fn clip(&mut self, max: f64) -> Result<f64> {
        let norm = self.norm()?;
        if norm > max {
            for grad in self.sums.iter_mut().flatten() {
                *grad = (&*grad * (max / norm))?;
            }
        }
        Ok(norm)
    }

    /// The gradient of the `index`-th variable; `None` where no pass reached it.
    pub fn get(&self, index: usize) -> Option<&Tensor> {
        self.sums.get(index).and_then(Option::as_ref)
    }
}
