//! [`AdamW`] (arXiv 1711.05101) with learning rates and decays for parts of a variable, and a state to save.

use std::ops::Range;

use candle_core::{Result, Tensor, Var, bail};

use crate::gradients::Gradients;

/// Constants of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Term added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// Part of a variable, with its own learning rate and decay.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Range of elements, in row-major order.
    pub range: Range<usize>,
    /// Learning rate relative to the step's.
    pub lr_ratio: f64,
    /// Weight decay.
    pub decay: f64,
}

impl Part {
    /// Returns a view of these elements of a tensor.
    fn of(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.flatten_all()?.narrow(0, self.range.start, self.range.len())
    }
}

/// Variable with the learning rates and decays of its parts.
///
/// The variable has one gradient and one pair of moments; a step updates it part by part, on views of them.
///
/// ```
/// use candle_core::{DType, Device, Var};
/// use kron_candle::{Group, Part};
///
/// # fn main() -> candle_core::Result<()> {
/// let var = Var::zeros(10, DType::F32, &Device::Cpu)?;
/// let fast = Part { range: 0..4, lr_ratio: 16.0, decay: 0.0 };
/// let usual = Part { range: 4..10, lr_ratio: 1.0, decay: 0.01 };
/// assert_eq!(Group::new(var.clone(), vec![fast.clone(), usual])?.parts().len(), 2);
/// assert!(Group::new(var.clone(), vec![fast]).is_err()); // elements 4 to 9 are missing
/// assert_eq!(Group::from(var).parts()[0].lr_ratio, 1.0);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Group {
    var: Var,
    parts: Vec<Part>,
}

impl Group {
    /// Divides a variable into parts, first to last; empty parts are dropped.
    ///
    /// # Errors
    /// Parts overlap, leave a gap, or do not end where the variable does; a learning-rate ratio or decay is negative,
    /// NaN or infinite.
    pub fn new(var: Var, mut parts: Vec<Part>) -> Result<Self> {
        let mut end = 0;
        for Part { range, lr_ratio, decay } in &parts {
            for (name, value) in [("learning-rate ratio", *lr_ratio), ("decay", *decay)] {
                if !(value.is_finite() && value >= 0.0) {
                    bail!("the {name} of a part is {value}, but it is a finite number of at least 0");
                }
            }
            if range.start != end {
                bail!(
                    "a part is {range:?}, but the part before it ends at {end}: parts follow one another \
                     without gap or overlap"
                );
            }
            if range.end < range.start {
                bail!("a part is {range:?}, but a part ends where it begins or after");
            }
            end = range.end;
        }
        if end != var.elem_count() {
            bail!("the parts of a variable end at {end}, but it has {} elements", var.elem_count());
        }
        parts.retain(|part| !part.range.is_empty());
        Ok(Self { var, parts })
    }

    /// Makes a group of one part, with a learning rate relative to the step's.
    ///
    /// # Errors
    /// The learning-rate ratio or decay is negative, NaN or infinite.
    pub fn whole(var: Var, lr_ratio: f64, decay: f64) -> Result<Self> {
        let range = 0..var.elem_count();
        Self::new(var, vec![Part { range, lr_ratio, decay }])
    }

    /// Returns the variable.
    pub const fn var(&self) -> &Var {
        &self.var
    }
    /// Returns the parts, first to last.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl From<Var> for Group {
    /// Makes a group of one part with the step's own learning rate and no decay.
    fn from(var: Var) -> Self {
        let parts = vec![Part { range: 0..var.elem_count(), lr_ratio: 1.0, decay: 0.0 }];
        Self { var, parts }
    }
}

/// AdamW optimizer: variables, their moments and the number of steps taken.
///
/// ```
/// use candle_core::{Device, Var};
/// use kron_candle::{AdamW, AdamWConfig, Gradients, Group};
///
/// # fn main() -> candle_core::Result<()> {
/// let w = Var::new(&[3f32, -4.0], &Device::Cpu)?;
/// let mut optimizer = AdamW::new(vec![Group::from(w.clone())], AdamWConfig::default())?;
/// for step in 0..100 {
///     let mut gradients = Gradients::new(&optimizer.vars());
///     gradients.add(&w.sqr()?.sum_all()?.backward()?, 1.0)?;
///     optimizer.step(&gradients, 0.2 * (1.0 - step as f64 / 100.0))?; // the learning rate decays
/// }
/// assert!(w.abs()?.max_all()?.to_scalar::<f32>()? < 0.1);
///
/// // The state goes into a checkpoint, and back.
/// let (steps, moments) = optimizer.state();
/// let mut resumed = AdamW::new(vec![Group::from(w)], AdamWConfig::default())?;
/// resumed.restore(steps, moments.to_vec())?;
/// assert_eq!(resumed.state().0, 100);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    groups: Vec<Group>,
    /// First and second moment of each variable.
    moments: Vec<[Tensor; 2]>,
    steps: u64,
}

impl AdamW {
    /// Makes an optimizer before its first step.
    ///
    /// # Errors
    /// candle fails.
    pub fn new(groups: Vec<Group>, config: AdamWConfig) -> Result<Self> {
        let zeros = |g: &Group| Ok([g.var.as_tensor().zeros_like()?, g.var.as_tensor().zeros_like()?]);
        let moments = groups.iter().map(zeros).collect::<Result<_>>()?;
        Ok(Self { config, groups, moments, steps: 0 })
    }

    /// Returns the variables, in order.
    pub fn vars(&self) -> Vec<Var> {
        self.groups.iter().map(|g| g.var.clone()).collect()
    }

    /// Takes one step with the learning rate `lr`; variables without a gradient stay unchanged.
    ///
    /// # Errors
    /// candle fails.
    pub fn step(&mut self, gradients: &Gradients, lr: f64) -> Result<()> {
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps } = self.config;
        let correct = |beta: f64| 1.0 / (1.0 - beta.powf(self.steps as f64));
        let (correct1, correct2) = (correct(beta1), correct(beta2));
        for (index, (group, [m, v])) in self.groups.iter().zip(&mut self.moments).enumerate() {
            let Some(grad) = gradients.get(index) else { continue };
            *m = ((&*m * beta1)? + (grad * (1.0 - beta1))?)?.detach();
            *v = ((&*v * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?.detach();
            // A view, because candle's variables are contiguous.
            let var = group.var.as_detached_tensor().flatten_all()?;
            for part in &group.parts {
                let (theta, m, v) = (part.of(&var)?, part.of(m)?, part.of(v)?);
                let update = ((m * correct1)? / ((v * correct2)?.sqrt()? + eps)?)?;
                let update = (update + (&theta * part.decay)?)?;
                let update = if part.lr_ratio == 1.0 { update } else { (update * part.lr_ratio)? };
                var.slice_set(&(theta - (update * lr)?)?, 0, part.range.start)?;
            }
        }
        Ok(())
    }

    /// Returns the number of steps taken, and the first and second moment of each variable in order.
    ///
    /// ```
    /// use candle_core::{Device, Var};
    /// use kron_candle::{AdamW, AdamWConfig, Group};
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let w = Var::new(&[3f32, -4.0], &Device::Cpu)?;
    /// let optimizer = AdamW::new(vec![Group::from(w)], AdamWConfig::default())?;
    /// let (steps, moments) = optimizer.state();
    /// assert_eq!((steps, moments.len()), (0, 1));
    /// assert_eq!(moments[0][1].to_vec1::<f32>()?, [0.0, 0.0]);
    /// # Ok(()) }
    /// ```
    pub fn state(&self) -> (u64, &[[Tensor; 2]]) {
        (self.steps, &self.moments)
    }

    /// Restores a saved state.
    ///
    /// ```
    /// use candle_core::{Device, Tensor, Var};
    /// use kron_candle::{AdamW, AdamWConfig, Group};
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let w = Var::new(&[3f32, -4.0], &Device::Cpu)?;
    /// let mut optimizer = AdamW::new(vec![Group::from(w)], AdamWConfig::default())?;
    /// let moment = Tensor::new(&[0.5f32, 0.25], &Device::Cpu)?;
    /// optimizer.restore(7, vec![[moment.clone(), moment]])?;
    /// assert_eq!(optimizer.state().0, 7);
    /// assert!(optimizer.restore(7, Vec::new()).is_err()); // moments of one variable are missing
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The moments do not fit the variables.
    pub fn restore(&mut self, steps: u64, moments: Vec<[Tensor; 2]>) -> Result<()> {
        if moments.len() != self.groups.len() {
            bail!("moments of {} variables, but the optimizer has {}", moments.len(), self.groups.len());
        }
        for (moment, group) in moments.iter().zip(&self.groups) {
            if let Some(other) = moment.iter().find(|t| t.shape() != group.var.shape()) {
                bail!("a moment is {:?}, but its variable is {:?}", other.shape(), group.var.shape());
            }
        }
        (self.steps, self.moments) = (steps, moments);
        Ok(())
    }
}
