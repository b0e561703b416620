//! What the file says about its layers beyond their tensors: one JSON document
//! under one key of safetensors' metadata.

use serde::{Deserialize, Serialize};

use crate::{Adapter, Layer, Result, ScaleRule, Scaling};
use kron_core::{Inner, KronShape, LayerDims, Outer, Split};

/// The version of the format that is written, and the only one that is read.
pub const VERSION: u64 = 1;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    version: u64,
    pub target_modules: Vec<String>,
    pub layers: Vec<Entry>,
}

/// One layer: [`KronShape`] and [`Scaling`] as they were given.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub module: String,
    d_out: usize,
    d_in: usize,
    a_out: usize,
    a_in: usize,
    outer: OuterName,
    inner: InnerName,
    alpha: f32,
    alpha_rank: usize,
    rule: RuleName,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum OuterName {
    Trained,
    One,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum InnerName {
    Rank(usize),
    Full,
}

#[derive(Deserialize, Serialize)]
enum RuleName {
    #[serde(rename = "alpha/r")]
    AlphaOverR,
    #[serde(rename = "alpha/sqrt(r)")]
    AlphaOverSqrtR,
}

pub(super) fn decode(json: &str) -> Result<Manifest, String> {
    /// Read first, so that a later version is called that and not a mistake.
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let key = Adapter::RESERVED_KEY;
    let broken = |e: serde_json::Error| format!("has metadata {key} that breaks the format: {e}");
    let Versioned { version } = serde_json::from_str(json).map_err(broken)?;
    if version != VERSION {
        return Err(format!(
            "is of version {version} of the format, but this program reads version {VERSION}"
        ));
    }
    serde_json::from_str(json).map_err(broken)
}

pub(super) fn encode(adapter: &Adapter) -> Result<String, String> {
    let manifest = Manifest {
        version: VERSION,
        target_modules: adapter.target_modules().to_vec(),
        layers: adapter.layers().iter().map(Entry::of).collect(),
    };
    serde_json::to_string(&manifest).map_err(|e| format!("the metadata cannot be written: {e}"))
}

impl Entry {
    fn of(layer: &Layer) -> Self {
        let (shape, scaling) = (layer.shape(), layer.scaling());
        Self {
            module: layer.module().into(),
            d_out: shape.d_out(),
            d_in: shape.d_in(),
            a_out: shape.a_out(),
            a_in: shape.a_in(),
            outer: match shape.outer() {
                Outer::Trained => OuterName::Trained,
                Outer::One => OuterName::One,
            },
            inner: match shape.inner() {
                Inner::LowRank(r) => InnerName::Rank(r),
                Inner::Full => InnerName::Full,
            },
            alpha: scaling.alpha(),
            alpha_rank: scaling.rank(),
            rule: match scaling.rule() {
                ScaleRule::AlphaOverR => RuleName::AlphaOverR,
                ScaleRule::AlphaOverSqrtR => RuleName::AlphaOverSqrtR,
            },
        }
    }

    /// The shape and scale, by the constructors that check them.
    pub fn values(&self) -> Result<(KronShape, Scaling)> {
        let outer = match self.outer {
            OuterName::Trained => Outer::Trained,
            OuterName::One => Outer::One,
        };
        let inner = match self.inner {
            InnerName::Rank(r) => Inner::LowRank(r),
            InnerName::Full => Inner::Full,
        };
        let rule = match self.rule {
            RuleName::AlphaOverR => ScaleRule::AlphaOverR,
            RuleName::AlphaOverSqrtR => ScaleRule::AlphaOverSqrtR,
        };
        let shape = KronShape::new(
            LayerDims { d_out: self.d_out, d_in: self.d_in },
            Split { a_out: self.a_out, a_in: self.a_in },
            outer,
            inner,
        )?;
        Ok((shape, Scaling::new(self.alpha, self.alpha_rank, rule)?))
    }
}
