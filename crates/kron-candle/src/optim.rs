//! AdamW (arXiv 1711.05101) with rates and decays for parts of a variable, a
//! state that can be saved, and a step whose learning rate is an argument.

use std::ops::Range;

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

/// Some of a variable's numbers and how they are trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Which numbers, row-major.
    pub range: Range<usize>,
    /// Learning rate relative to the step's.
    pub rate: f64,
    /// Weight decay.
    pub decay: f64,
}

impl Part {
    /// A view of these numbers of a tensor.
    fn of(&self, tensor: &Tensor) -> Result<Tensor> {
        tensor.flatten_all()?.narrow(0, self.range.start, self.range.len())
    }
}

/// A variable and how its parts are trained. It has one gradient and one pair of
/// moments; a step is taken part by part, on views of them.
#[derive(Clone, Debug)]
pub struct Group {
    var: Var,
    parts: Vec<Part>,
}

impl Group {
    /// The parts of a variable, first to last. Empty ones are left out.
    ///
    /// # Errors
    /// Parts that overlap, leave a gap, or do not end where the variable does; a
    /// rate or a decay that is negative, NaN or infinite.
    pub fn new(var: Var, mut parts: Vec<Part>) -> Result<Self> {
        let mut end = 0;
        for Part { range, rate, decay } in &parts {
            for (name, value) in [("rate", *rate), ("decay", *decay)] {
                if !(value.is_finite() && value >= 0.0) {
                    bail!("the {name} of a part is {value}, but it is a finite number of at least 0");
                }
            }
            if range.start != end {
                bail!(
                    "a part is {range:?}, but what comes before it ends at {end}: parts follow one another \
                     without gap or overlap"
                );
            }
            if range.end < range.start {
                bail!("a part is {range:?}, but a part ends where it begins or after");
            }
            end = range.end;
        }
        if end != var.elem_count() {
            bail!("the parts of a variable end at {end}, but it has {} numbers", var.elem_count());
        }
        parts.retain(|part| !part.range.is_empty());
        Ok(Self { var, parts })
    }

    /// A variable in one part, at a rate relative to the step's.
    ///
    /// # Errors
    /// A rate or a decay that is negative, NaN or infinite.
    pub fn whole(var: Var, rate: f64, decay: f64) -> Result<Self> {
        let range = 0..var.elem_count();
        Self::new(var, vec![Part { range, rate, decay }])
    }

    /// What is trained.
    pub const fn var(&self) -> &Var {
        &self.var
    }
    /// Its parts, first to last.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }
}

impl From<Var> for Group {
    /// The step's own rate and no decay.
    fn from(var: Var) -> Self {
        let parts = vec![Part { range: 0..var.elem_count(), rate: 1.0, decay: 0.0 }];
        Self { var, parts }
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
    /// What candle refuses.
    pub fn new(groups: Vec<Group>, config: AdamWConfig) -> Result<Self> {
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
            // Shares the variable's memory, which every variable of candle has in one piece.
            let var = group.var.as_detached_tensor().flatten_all()?;
            for part in &group.parts {
                let (theta, m, v) = (part.of(&var)?, part.of(m)?, part.of(v)?);
                let move_by = ((m * correct1)? / ((v * correct2)?.sqrt()? + eps)?)?;
                let move_by = (move_by + (&theta * part.decay)?)?;
                let move_by = if part.rate == 1.0 { move_by } else { (move_by * part.rate)? };
                var.slice_set(&(theta - (move_by * rate)?)?, 0, part.range.start)?;
            }
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
