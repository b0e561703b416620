//! The names of the engines, and their table, `engines.toml`.

use std::sync::LazyLock;

use kron_core::KronOp;
use serde::{Deserialize, Serialize};

use crate::problem::LayerTask;

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
    /// Kron-LoRA on our kernels before the base product, which adds to it.
    KronFirst,
}

/// A row of `engines.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// The engine.
    pub name: Kind,
    /// Its name in tables and plots.
    pub title: String,
    /// Its colour in plots, `#rrggbb`.
    pub colour: String,
    /// The computation.
    pub what: String,
    /// The reason for including it.
    pub why: String,
}

/// Returns the rows of `engines.toml`, in its order.
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
    /// All engines, in the order of `engines.toml`.
    pub const ALL: [Kind; 8] = [
        Kind::Linear,
        Kind::LoraGemm,
        Kind::LoraFused,
        Kind::KronUnfused,
        Kind::KronDense,
        Kind::KronFused,
        Kind::MergePerStep,
        Kind::KronFirst,
    ];

    /// Returns the name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Linear => "linear",
            Kind::LoraGemm => "lora-gemm",
            Kind::LoraFused => "lora-fused",
            Kind::KronUnfused => "kron-unfused",
            Kind::KronDense => "kron-dense",
            Kind::KronFused => "kron-fused",
            Kind::MergePerStep => "merge-per-step",
            Kind::KronFirst => "kron-first",
        }
    }

    /// Returns true for engines that multiply by a whole d_out × d_in matrix.
    pub const fn is_dense(self) -> bool {
        matches!(self, Kind::Linear | Kind::KronDense | Kind::KronFirst)
    }

    /// Returns true for engines that are built from the frozen weight.
    pub const fn needs_weight(self) -> bool {
        matches!(self, Kind::Linear | Kind::MergePerStep | Kind::KronFirst)
    }

    /// Returns the engine's problem on the layer of two adapters: Kron-LoRA's, and LoRA's.
    pub fn problem(self, kron: KronOp, lora: KronOp) -> LayerTask {
        match self {
            Kind::Linear => LayerTask::Linear(LayerTask::Adapter(kron).layer()),
            Kind::LoraGemm | Kind::LoraFused => LayerTask::Adapter(lora),
            Kind::KronUnfused | Kind::KronDense | Kind::KronFused => LayerTask::Adapter(kron),
            Kind::MergePerStep => LayerTask::Merge(kron),
            Kind::KronFirst => LayerTask::Layer(kron),
        }
    }

    /// Returns the engine's row of `engines.toml`.
    pub fn info(self) -> &'static Info {
        table().iter().find(|i| i.name == self).expect("a test holds that every engine has a row")
    }
}
