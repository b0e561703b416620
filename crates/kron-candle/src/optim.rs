//! AdamW (arXiv 1711.05101) with a rate for every number, a state that can be
//! saved, and a step whose learning rate is an argument.

use candle_core::{Result, Tensor, Var, bail};

use crate::Gradients;

/// Constants of [`AdamW`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

/// A variable and how it is trained.
#[derive(Clone, Debug)]
pub struct Group {
    /// What is trained.
    pub var: Var,
    /// Learning rates relative to the step's, of the variable's shape; `None` is 1 everywhere.
    pub rates: Option<Tensor>,
    /// Weight decay.
    pub decay: f64,
}

impl From<Var> for Group {
    /// The step's own rate and no decay.
    fn from(var: Var) -> Self {
        Self { var, rates: None, decay: 0.0 }
    }
}

/// The optimizer: variables, their moments and the number of steps taken.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: AdamWConfig,
    groups: Vec<Group>,
    /// First and second moment of each variable.
    moments: Vec<[Tensor; 2]>,
    steps: u64,
}

impl AdamW {
    /// No step taken yet.
    ///
    /// # Errors
    /// Rates of another shape than their variable.
    pub fn new(groups: Vec<Group>, config: AdamWConfig) -> Result<Self> {
        for Group { var, rates, .. } in &groups {
            if let Some(rates) = rates.as_ref().filter(|rates| rates.shape() != var.shape()) {
                bail!("learning rates are {:?}, but their variable is {:?}", rates.shape(), var.shape());
            }
        }
        let zeros = |g: &Group| Ok([g.var.as_tensor().zeros_like()?, g.var.as_tensor().zeros_like()?]);
        let moments = groups.iter().map(zeros).collect::<Result<_>>()?;
        Ok(Self { config, groups, moments, steps: 0 })
    }

    /// The variables, in order.
    pub fn vars(&self) -> Vec<Var> {
        self.groups.iter().map(|g| g.var.clone()).collect()
    }

    /// One step at this learning rate; variables without a gradient stay.
    ///
    /// # Errors
    /// What candle refuses.
    pub fn step(&mut self, gradients: &Gradients, rate: f64) -> Result<()> {
        self.steps += 1;
        let AdamWConfig { beta1, beta2, eps } = self.config;
        let correct = |beta: f64| 1.0 / (1.0 - beta.powf(self.steps as f64));
        let (correct1, correct2) = (correct(beta1), correct(beta2));
        for (index, (group, [m, v])) in self.groups.iter().zip(&mut self.moments).enumerate() {
            let Some(grad) = gradients.get(index) else { continue };
            *m = ((&*m * beta1)? + (grad * (1.0 - beta1))?)?.detach();
            *v = ((&*v * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?.detach();
            let move_by = ((&*m * correct1)? / ((&*v * correct2)?.sqrt()? + eps)?)?;
            let move_by = (move_by + (group.var.as_detached_tensor() * group.decay)?)?;
            let move_by = match &group.rates {
                Some(rates) => (move_by * rates)?,
                None => move_by,
            };
            group.var.set(&(group.var.as_detached_tensor() - (move_by * rate)?)?)?;
        }
        Ok(())
    }

    /// Steps taken, and first and second moment of each variable in order.
    pub fn state(&self) -> (u64, &[[Tensor; 2]]) {
        (self.steps, &self.moments)
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// Moments that are not of these variables.
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
