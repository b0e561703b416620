//! Rules of the settings: the range of every number, and the combinations that cannot be.

use kron_adapter::Adapter;

use super::{Config, Method, Task};
use crate::compute::Precision;
use crate::error::{Result, invalid};

/// Range of a number among the settings; both ends belong to it.
#[derive(Clone, Copy, Debug)]
pub struct Range<T> {
    /// Name of the setting, with its section.
    pub name: &'static str,
    /// Smallest value.
    pub low: T,
    /// Largest value.
    pub high: T,
    value: fn(&Config) -> T,
}

const fn range<T>(name: &'static str, low: T, high: T, value: fn(&Config) -> T) -> Range<T>
where
    T: Copy,
{
    Range { name, low, high, value }
}

/// Largest number of examples per step, or per forward pass.
pub const MAX_BATCH: usize = 1 << 20;

/// Ranges of all integers.
pub const INTEGERS: [Range<u64>; 15] = [
    range("data.holdout", 0, 1 << 32, |c| c.data.holdout as u64),
    range("data.max_len", 2, 1 << 20, |c| c.data.max_len as u64),
    range("data.limit_train", 0, 1 << 32, |c| c.data.limit_train as u64),
    range("data.limit_eval", 0, 1 << 32, |c| c.data.limit_eval as u64),
    range("adapter.rank", 1, 1 << 16, |c| c.adapter.rank as u64),
    range("adapter.a_out", 0, 1 << 20, |c| c.adapter.a_out as u64),
    range("adapter.a_in", 0, 1 << 20, |c| c.adapter.a_in as u64),
    range("adapter.factor", 0, 1 << 20, |c| c.adapter.factor as u64),
    range("adapter.terms", 1, Adapter::MAX_TERMS as u64, |c| c.adapter.terms as u64),
    range("adapter.match_params", 0, 1 << 40, |c| c.adapter.match_params),
    range("train.epochs", 1, 1_000_000, |c| c.train.epochs),
    range("train.batch", 1, MAX_BATCH as u64, |c| c.train.batch as u64),
    range("train.micro_batch", 0, 1 << 20, |c| c.train.micro_batch as u64),
    // TOML's integers have a sign.
    range("train.seed", 0, i64::MAX as u64, |c| c.train.seed),
    range("train.save_every", 0, 1 << 40, |c| c.train.save_every),
];

/// Ranges of all floating-point numbers.
pub const FLOATS: [Range<f64>; 12] = [
    range("adapter.alpha", 0.0, 1e6, |c| c.adapter.alpha.into()),
    range("adapter.scale", 0.0, 1e6, |c| c.adapter.scale.into()),
    range("adapter.dropout", 0.0, 0.99, |c| c.adapter.dropout.into()),
    range("train.lr", 0.0, 1e30, |c| c.train.lr),
    range("train.head_lr", 0.0, 1e30, |c| c.train.head_lr),
    // At 0 the factor that starts at zero would stay there, and ΔW with it.
    range("train.lora_plus", 1e-6, 1e6, |c| c.train.lora_plus),
    range("train.warmup", 0.0, 1.0, |c| c.train.warmup),
    range("train.decay", 0.0, 1e3, |c| c.train.decay),
    range("train.clip", 0.0, 1e9, |c| c.train.clip),
    range("train.betas", 0.0, 0.999_999, |c| c.train.betas[0]),
    range("train.betas", 0.0, 0.999_999, |c| c.train.betas[1]),
    range("train.eps", 1e-30, 1.0, |c| c.train.eps),
];

impl Config {
    /// Fails if a setting is out of range or contradicts another.
    ///
    /// # Errors
    /// The first such setting, with its rule.
    pub fn check(&self) -> Result<()> {
        let paths = [("model", &self.model), ("data.train", &self.data.train)];
        if let Some((name, _)) = paths.into_iter().find(|(_, path)| path.as_os_str().is_empty()) {
            return Err(invalid(format!("{name} is not set, but a run needs it")));
        }
        for Range { name, low, high, value } in INTEGERS {
            let value = value(self);
            if !(low..=high).contains(&value) {
                return Err(invalid(format!("{name} is {value}, but it is an integer from {low} to {high}")));
            }
        }
        for Range { name, low, high, value } in FLOATS {
            let value = value(self);
            if !(low..=high).contains(&value) {
                return Err(invalid(format!(
                    "{name} is {value:?}, but it is a number from {low:?} to {high:?}"
                )));
            }
        }
        self.check_combinations()
    }

    fn check_combinations(&self) -> Result<()> {
        let (train, adapter) = (&self.train, &self.adapter);
        // The optimizer stores the head's learning rate as a ratio to the other.
        if train.lr == 0.0 && train.head_lr > 0.0 {
            return Err(invalid(format!(
                "train.lr is 0 and train.head_lr {}, but a head's own learning rate needs another beside it: \
                 method head trains the head alone, at train.lr",
                train.head_lr
            )));
        }
        if let (holdout @ 1.., Some(validation)) = (self.data.holdout, &self.data.validation) {
            return Err(invalid(format!(
                "data.holdout is {holdout} and data.validation {}, but there is one validation set",
                validation.display()
            )));
        }
        if !adapter.fused && adapter.dropout > 0.0 {
            return Err(invalid(format!(
                "adapter.dropout is {}, but adapter.fused = false takes none",
                adapter.dropout
            )));
        }
        if adapter.terms > 1 && !matches!(adapter.method, Method::Kron | Method::Krona) {
            return Err(invalid(format!(
                "adapter.terms is {}, but only the methods kron and krona are sums: LoRAs together are one of a higher rank",
                adapter.terms
            )));
        }
        if adapter.method == Method::Head && self.task != Task::Classify {
            return Err(invalid("method head trains a new head, which only the task classify has"));
        }
        if adapter.method == Method::Full && self.compute.precision != Precision::F32 {
            return Err(invalid(
                "method full trains the weights themselves, which takes compute.precision f32",
            ));
        }
        Ok(())
    }
}
