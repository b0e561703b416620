//! What competes: seven engines behind one trait.

mod dense;
mod fused;
mod linear;
mod lora_gemm;
mod merge;
mod unfused;
mod weight;

use std::sync::{Arc, LazyLock};

use kron_core::{Cpu, Element, KronOp, Result, Theta};
use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::contest;
use crate::data::Set;
use crate::gemm::Library;
use crate::problem::Problem;

pub use lora_gemm::Schedule;

/// An engine's name, as in `engines.toml`, on the command line and in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The frozen layer alone.
    Linear,
    /// LoRA as two products by a GEMM crate.
    LoraGemm,
    /// LoRA on our kernels.
    LoraFused,
    /// Kron-LoRA as separate products with temporaries.
    KronUnfused,
    /// Kron-LoRA with ΔW materialised.
    KronDense,
    /// Kron-LoRA on our kernels.
    KronFused,
    /// ΔW merged into the weight every step.
    MergePerStep,
}

/// A row of `engines.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// Which engine.
    pub name: Kind,
    /// Its name in tables and plots.
    pub title: String,
    /// Its colour in plots, `#rrggbb`.
    pub colour: String,
    /// What it computes, and how.
    pub what: String,
    /// Why it is in the comparison.
    pub why: String,
}

/// The rows of `engines.toml`, in its order.
pub fn table() -> &'static [Info] {
    #[derive(Deserialize)]
    struct Table {
        engine: Vec<Info>,
    }
    // The file is part of the program and a test reads it.
    static TABLE: LazyLock<Vec<Info>> = LazyLock::new(|| {
        toml::from_str::<Table>(include_str!("../../engines.toml")).expect("engines.toml").engine
    });
    &TABLE
}

impl Kind {
    /// All of them, in the order of `engines.toml`.
    pub const ALL: [Kind; 7] = [
        Kind::Linear,
        Kind::LoraGemm,
        Kind::LoraFused,
        Kind::KronUnfused,
        Kind::KronDense,
        Kind::KronFused,
        Kind::MergePerStep,
    ];

    /// The name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Linear => "linear",
            Kind::LoraGemm => "lora-gemm",
            Kind::LoraFused => "lora-fused",
            Kind::KronUnfused => "kron-unfused",
            Kind::KronDense => "kron-dense",
            Kind::KronFused => "kron-fused",
            Kind::MergePerStep => "merge-per-step",
        }
    }

    /// Whether it multiplies by a whole d_out × d_in matrix.
    pub const fn is_dense(self) -> bool {
        matches!(self, Kind::Linear | Kind::KronDense)
    }

    /// Its row of `engines.toml`.
    pub fn info(self) -> &'static Info {
        table().iter().find(|i| i.name == self).expect("a test holds that every engine has a row")
    }
}

/// One way to compute one layer's forward and backward on a [`Set`].
pub trait Engine<E: Element> {
    /// Bytes of T and of buffers kept between calls, without θ and its gradient;
    /// with `backward`, for both passes, else for forward alone.
    fn scratch_bytes(&self, backward: bool) -> usize;

    /// Adds the adapter's output to Y (the base layer overwrites it) and writes T.
    ///
    /// # Errors
    /// What kron-core refuses.
    fn forward(&mut self, set: &mut Set<E>) -> Result<()>;

    /// Adds to dX and to the gradient.
    ///
    /// # Errors
    /// What kron-core refuses.
    fn backward(&mut self, set: &mut Set<E>) -> Result<()>;

    /// The gradient so far, \[dA | dB | dC\]; empty for the base layer.
    fn grad(&mut self) -> &mut [f32] {
        &mut []
    }

    /// The weight that merging changes.
    fn weight(&self) -> Option<&Array2<E>> {
        None
    }
}

/// What an engine is made from.
#[derive(Clone, Debug)]
pub struct Ingredients<E> {
    /// Tokens.
    pub rows: usize,
    /// Threads of rayon's current pool.
    pub threads: usize,
    /// Our backend.
    pub cpu: Cpu,
    /// W, d_out × d_in; without it neither `linear` nor `merge-per-step` can be made.
    pub weight: Option<Arc<Array2<E>>>,
}

/// The products that won an engine's contest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The engine has no choice.
    None,
    /// One crate for both passes.
    Library(Library),
    /// Crate and schedule of forward, and of backward.
    Schedules(Schedule, Schedule),
}

impl Choice {
    /// What runs forward and what runs backward, for the record.
    pub fn names(self) -> Option<[String; 2]> {
        match self {
            Choice::None => None,
            Choice::Library(l) => Some([l.name().into(), l.name().into()]),
            Choice::Schedules(f, b) => Some([f.to_string(), b.to_string()]),
        }
    }
}

/// Measures every choice that the engine has on `trial` and takes the fastest.
///
/// # Errors
/// What kron-core refuses.
pub fn choose<E: Element>(
    kind: Kind,
    problem: &Problem,
    theta: Option<&Theta>,
    from: &Ingredients<E>,
    trial: &mut Set<E>,
) -> Result<Choice> {
    let from = Ingredients { rows: trial.rows(), ..from.clone() };
    let make = |choice| build(kind, choice, problem, theta, &from);
    match kind {
        Kind::LoraFused | Kind::KronFused | Kind::MergePerStep => Ok(Choice::None),
        Kind::Linear | Kind::KronDense | Kind::KronUnfused => {
            let (best, _) = contest::fastest(&Library::ALL.map(Choice::Library), make, trial)?;
            Ok(best)
        }
        Kind::LoraGemm => {
            let all: Vec<Choice> =
                Schedule::all(E::DTYPE).into_iter().map(|s| Choice::Schedules(s, s)).collect();
            match contest::fastest_by_pass(&all, make, trial)? {
                (Choice::Schedules(f, _), Choice::Schedules(_, b)) => Ok(Choice::Schedules(f, b)),
                (best, _) => Ok(best),
            }
        }
    }
}

/// Makes the engine for a problem.
///
/// # Panics
/// A problem or choice of another engine: the plan and [`choose`] pair them.
pub fn build<E: Element>(
    kind: Kind,
    choice: Choice,
    problem: &Problem,
    theta: Option<&Theta>,
    from: &Ingredients<E>,
) -> Box<dyn Engine<E>> {
    let weight = || from.weight.clone().expect("the plan asks for a weight");
    let adapter = || -> (KronOp, Theta) {
        (problem.op().expect("an adapter"), theta.expect("an adapter's θ").clone())
    };
    match (kind, choice) {
        (Kind::LoraFused | Kind::KronFused, Choice::None) => Box::new(fused::Fused::new(adapter(), from)),
        (Kind::MergePerStep, Choice::None) => Box::new(merge::Merge::new(adapter(), weight(), from)),
        (Kind::Linear, Choice::Library(l)) => Box::new(linear::Linear::new(weight(), l, from)),
        (Kind::KronDense, Choice::Library(l)) => Box::new(dense::Dense::new(adapter(), l, from)),
        (Kind::KronUnfused, Choice::Library(l)) => Box::new(unfused::Unfused::new(adapter(), l, from)),
        (Kind::LoraGemm, Choice::Schedules(f, b)) => {
            Box::new(lora_gemm::LoraGemm::new(adapter(), f, b, from))
        }
        (kind, choice) => unreachable!("{} is not made from {choice:?}", kind.name()),
    }
}

#[cfg(test)]
mod tests;
