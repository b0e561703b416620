//! The engines on the CPU, and how one of them is chosen and built.

mod dense;
mod first;
mod fused;
mod kind;
mod linear;
mod lora_gemm;
mod merge;
mod unfused;
mod weight;

use kron_core::{Accum, Element, KronOp, Result, Theta};

use crate::autotune;
use crate::data::Set;
use crate::engine::{Engine, EngineConfig};
use crate::gemm::GemmCrate;
use crate::problem::LayerTask;

pub use kind::{Info, Kind, table};
pub use lora_gemm::Strategy;

/// The products that autotuning found fastest for an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The engine has no choice.
    None,
    /// One crate for both passes.
    Crate(GemmCrate),
    /// The strategy of forward, and of backward.
    Strategies(Strategy, Strategy),
}

impl Choice {
    /// Returns the names of the products forward and backward, for the record.
    pub fn names(self) -> Option<[String; 2]> {
        match self {
            Choice::None => None,
            Choice::Crate(l) => Some([l.name().into(), l.name().into()]),
            Choice::Strategies(f, b) => Some([f.to_string(), b.to_string()]),
        }
    }
}

/// Measures every choice that the engine has on `trial` and returns the fastest.
///
/// # Errors
/// Fails if kron-core refuses a call.
pub fn choose<E: Element>(
    kind: Kind,
    problem: &LayerTask,
    theta: Option<&Theta>,
    config: &EngineConfig<E>,
    trial: &mut Set<E>,
) -> Result<Choice> {
    let config = EngineConfig { rows: trial.rows(), ..config.clone() };
    let make = |choice| build(kind, choice, problem, theta, &config);
    match kind {
        Kind::LoraFused | Kind::KronFused | Kind::MergePerStep => Ok(Choice::None),
        Kind::Linear | Kind::KronDense | Kind::KronUnfused | Kind::KronFirst => {
            autotune::fastest(&GemmCrate::ALL.map(Choice::Crate), make, trial)
        }
        Kind::LoraGemm => {
            let make = |s| make(Choice::Strategies(s, s));
            let (forward, backward) = autotune::fastest_by_pass(&Strategy::all(E::DTYPE), make, trial)?;
            Ok(Choice::Strategies(forward, backward))
        }
    }
}

/// Builds the engine for a problem.
///
/// # Panics
/// Panics on a problem or choice of another engine: the schedule and [`choose`] pair them.
pub fn build<E: Element>(
    kind: Kind,
    choice: Choice,
    problem: &LayerTask,
    theta: Option<&Theta>,
    config: &EngineConfig<E>,
) -> Box<dyn Engine<E>> {
    let weight = || config.weight.clone().expect("the schedule asks for a weight");
    let adapter = || -> (KronOp, Theta) {
        (problem.op().expect("an adapter"), theta.expect("an adapter's θ").clone())
    };
    match (kind, choice) {
        (Kind::LoraFused | Kind::KronFused, Choice::None) => {
            Box::new(fused::FusedEngine::new(adapter(), config, Accum::Add))
        }
        (Kind::MergePerStep, Choice::None) => Box::new(merge::MergeEngine::new(adapter(), weight(), config)),
        (Kind::Linear, Choice::Crate(l)) => Box::new(linear::Linear::new(weight(), l, config)),
        (Kind::KronFirst, Choice::Crate(l)) => Box::new(first::First::new(adapter(), weight(), l, config)),
        (Kind::KronDense, Choice::Crate(l)) => Box::new(dense::Dense::new(adapter(), l, config)),
        (Kind::KronUnfused, Choice::Crate(l)) => Box::new(unfused::Unfused::new(adapter(), l, config)),
        (Kind::LoraGemm, Choice::Strategies(f, b)) => {
            Box::new(lora_gemm::LoraGemm::new(adapter(), f, b, config))
        }
        (kind, choice) => unreachable!("{} is not built from {choice:?}", kind.name()),
    }
}

#[cfg(test)]
mod tests;
