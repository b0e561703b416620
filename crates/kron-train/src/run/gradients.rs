//! Gradients of a step: those of its micro-batches, added in their order, whatever rank computed them.

use candle_core::Var;
use kron_candle::{DropoutKey, Gradients};
use serde::{Deserialize, Serialize};

use super::learner::Learner;
use super::resources::device_mib;
use crate::config::{Config, Method, Train};
use crate::data::Examples;
use crate::error::{Error, Result, invalid};
use crate::ranks::World;

/// Fails if a rank would have nothing to do in a step.
pub(super) fn check_shares(config: &Config, ranks: usize) -> Result<()> {
    let train = &config.train;
    let (batch, micro_batch) = (train.batch, train.micro_batch);
    let parts = if micro_batch == 0 { 1 } else { batch.div_ceil(micro_batch) };
    match parts < ranks && config.adapter.method != Method::None {
        true => Err(invalid(format!(
            "a batch of {batch} has {parts} micro-batches (train.micro_batch is {micro_batch}), but each of {ranks} \
             ranks needs one"
        ))),
        false => Ok(()),
    }
}

/// Inputs of a step, besides its batch.
pub(super) struct Step<'a> {
    pub learner: &'a Learner,
    pub examples: &'a Examples,
    pub train: &'a Train,
    /// Number of steps before it.
    pub number: u64,
    /// Factor of the loss.
    pub factor: f64,
}

/// Gradients of a batch's mean loss, and what else came out.
pub(super) struct Computed {
    pub gradients: Gradients,
    pub loss: f32,
    /// Number of tokens.
    pub tokens: usize,
    /// Highest GPU memory in use on any rank after a backward pass, in MiB.
    pub device_mib: Option<u64>,
}

/// Report of a rank on its micro-batches.
#[derive(Default, Deserialize, Serialize)]
struct Told {
    /// Bits of each mean loss, which may be NaN.
    losses: Vec<u32>,
    tokens: usize,
    device_mib: Option<u64>,
    /// True for each variable that a backward pass reached.
    reached: Vec<bool>,
}

impl Step<'_> {
    /// Computes this rank's micro-batches, and adds those of all ranks.
    ///
    /// # Errors
    /// A loss is not finite, candle fails, or another rank does.
    pub fn compute(&self, batch: &[usize], vars: &[Var], world: &World) -> Result<Computed> {
        let micro = if self.train.micro_batch == 0 { batch.len() } else { self.train.micro_batch };
        let parts: Vec<&[usize]> = batch.chunks(micro).collect();
        let fraction = |part: usize| parts[part].len() as f64 / batch.len() as f64;
        let mut told = Told::default();
        // The first rank adds while it computes; the others' wait for the sum of those before.
        let (mut gradients, mut waiting) = (Gradients::new(vars), Vec::new());
        let own = world.share(parts.len()).try_for_each(|part| {
            let key = DropoutKey {
                seed: self.train.seed,
                // Every micro-batch of every step has its own mask.
                offset: self.number * self.train.batch as u64 + part as u64,
            };
            let (loss, tokens) = self.learner.loss(self.examples, parts[part], Some(key))?;
            let value = loss.to_scalar::<f32>()?;
            told.losses.push(value.to_bits());
            told.tokens += tokens;
            if !value.is_finite() {
                return Ok(());
            }
            let scaled = if self.factor == 1.0 { loss } else { (loss * self.factor)? };
            let store = scaled.backward()?;
            gradients.add(&store, fraction(part) / self.factor)?;
            // Measured before the next synchronisation, which releases the memory that this pass freed.
            let device = vars.first().and_then(|var| device_mib(var.device()));
            told.device_mib = told.device_mib.max(device);
            if !world.is_first() {
                told.reached = either(&told.reached, &gradients.reached());
                waiting.push(std::mem::replace(&mut gradients, Gradients::new(vars)).to_vec()?);
            }
            Ok(())
        });
        if world.is_first() {
            told.reached = gradients.reached();
        }
        let all = world.gather("losses of a step", own.map(|()| told))?;
        let mut loss = 0.0;
        for (part, bits) in all.iter().flat_map(|told| &told.losses).enumerate() {
            loss += fraction(part) as f32 * f32::from_bits(*bits);
            if !loss.is_finite() {
                return world.fail(Error::Diverged { step: self.number + 1, loss });
            }
        }
        if world.count() > 1 {
            let mut sum = gradients.to_vec()?;
            world.sum_in_order("gradients of a step", &mut sum, &waiting)?;
            let reached = all.iter().fold(Vec::new(), |reached, told| either(&reached, &told.reached));
            gradients.replace(&sum, &reached)?;
        }
        let tokens = all.iter().map(|told| told.tokens).sum();
        let device_mib = all.iter().filter_map(|told| told.device_mib).max();
        Ok(Computed { gradients, loss, tokens, device_mib })
    }
}

/// Returns true where one of two lists is, of which the first may be empty.
fn either(one: &[bool], other: &[bool]) -> Vec<bool> {
    let len = one.len().max(other.len());
    (0..len).map(|i| [one, other].iter().any(|list| list.get(i) == Some(&true))).collect()
}
