//! [`Gradients`] of a list of variables: summed over micro-batches, and clipped.

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

/// Gradients of a list of variables, in the list's order.
///
/// ```
/// use candle_core::{Device, Var};
/// use kron_candle::Gradients;
///
/// # fn main() -> candle_core::Result<()> {
/// let w = Var::new(&[3f32, 4.0], &Device::Cpu)?;
/// let mut gradients = Gradients::new(&[w.clone()]);
/// // Two micro-batches, each half of the batch; the loss ½·‖w‖² has the gradient w.
/// for _ in 0..2 {
///     let loss = (w.sqr()?.sum_all()? * 0.5)?;
///     gradients.add(&loss.backward()?, 0.5)?;
/// }
/// assert_eq!(gradients.norm()?, 5.0);
/// assert_eq!(gradients.clip(1.0)?, 5.0); // returns the norm before clipping
/// assert!((gradients.norm()? - 1.0).abs() < 1e-6);
/// assert_eq!(gradients.get(0).expect("a gradient").dims(), [2]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Gradients {
    vars: Vec<Var>,
    sums: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Makes an empty list of gradients for these variables.
    pub fn new(vars: &[Var]) -> Self {
        Self { vars: vars.to_vec(), sums: vec![None; vars.len()] }
    }

    /// Adds the gradients of one backward pass, times `weight`: the micro-batch's fraction of the batch.
    ///
    /// # Errors
    /// candle fails.
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

    /// Returns true for each variable that a backward pass reached.
    pub fn reached(&self) -> Vec<bool> {
        self.sums.iter().map(Option::is_some).collect()
    }

    /// Returns the values of all gradients one after another, −0 for a variable that no backward pass reached: added to
    /// another's values it leaves them their bits.
    ///
    /// # Errors
    /// A gradient is not in float32, or candle fails.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        for (var, sum) in self.vars.iter().zip(&self.sums) {
            match sum {
                Some(sum) => values.extend(sum.flatten_all()?.to_vec1::<f32>()?),
                None => values.resize(values.len() + var.elem_count(), -0.0),
            }
        }
        Ok(values)
    }

    /// Replaces the gradients by values in the order of [`Self::to_vec`], for the variables that are `reached`.
    ///
    /// # Errors
    /// The values or the flags are of another number, or candle fails.
    pub fn replace(&mut self, values: &[f32], reached: &[bool]) -> Result<()> {
        let count: usize = self.vars.iter().map(|var| var.elem_count()).sum();
        if (values.len(), reached.len()) != (count, self.vars.len()) {
            candle_core::bail!(
                "{} values and {} flags are given for {count} values of {} variables",
                values.len(),
                reached.len(),
                self.vars.len()
            );
        }
        let mut rest = values;
        for ((var, sum), reached) in self.vars.iter().zip(&mut self.sums).zip(reached) {
            let (own, after) = rest.split_at(var.elem_count());
            rest = after;
            *sum = reached.then(|| Tensor::from_slice(own, var.dims(), var.device())).transpose()?;
        }
        Ok(())
    }

    /// Returns the Euclidean norm over all elements of all gradients.
    ///
    /// # Errors
    /// candle fails.
    pub fn norm(&self) -> Result<f64> {
        let mut square = 0.0;
        for grad in self.sums.iter().flatten() {
            square +=
                f64::from(grad.sqr()?.sum_all()?.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?);
        }
        Ok(square.sqrt())
    }

    /// Scales the gradients down to the norm `max` if theirs is larger; returns the norm before.
    ///
    /// ```
    /// use candle_core::{Device, Var};
    /// use kron_candle::Gradients;
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let w = Var::new(&[3f32, 4.0], &Device::Cpu)?;
    /// let mut gradients = Gradients::new(&[w.clone()]);
    /// gradients.add(&(w.sqr()?.sum_all()? * 0.5)?.backward()?, 1.0)?; // the gradient is w
    /// assert_eq!(gradients.clip(10.0)?, 5.0); // below the limit: unchanged
    /// assert_eq!(gradients.norm()?, 5.0);
    /// gradients.clip(2.5)?;
    /// assert!((gradients.norm()? - 2.5).abs() < 1e-6);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// candle fails.
    pub fn clip(&mut self, max: f64) -> Result<f64> {
        let norm = self.norm()?;
        if norm > max {
            for grad in self.sums.iter_mut().flatten() {
                *grad = (&*grad * (max / norm))?;
            }
        }
        Ok(norm)
    }

    /// Returns the gradient of the `index`-th variable; `None` if no backward pass reached it.
    pub fn get(&self, index: usize) -> Option<&Tensor> {
        self.sums.get(index).and_then(Option::as_ref)
    }
}
