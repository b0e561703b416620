//! The layers' fields beside their tensors: one JSON document under one key of
//! safetensors' metadata.

use std::collections::BTreeMap;

use kron_core::{Inner, KronShape, LayerDims, Outer, Split};
use serde::{Deserialize, Deserializer, Serialize};

use crate::text::shortened;
use crate::{Adapter, Error, Layer, Result, ScaleRule, Scaling};

/// Newest version of the format. An adapter is written in the oldest that can hold it.
pub const VERSION: u64 = 4;
/// Version without sums of terms.
const WITHOUT_TERMS: u64 = 3;
/// Version without rows of tensors.
const WHOLE_TENSORS: u64 = 2;
/// Version without trained tensors.
const FACTORS_ALONE: u64 = 1;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    version: u64,
    pub target_modules: Vec<String>,
    pub layers: Vec<LayerRecord>,
    /// Names of the trained tensors; version 1 lacks the field.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub trained_tensors: Option<Vec<String>>,
    /// Indices of the rows of the model's tensor that a trained tensor has, by its name; version 2 lacks the field.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub trained_rows: Option<BTreeMap<String, Vec<usize>>>,
}

/// Reads a field that may be missing, but not null.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(json: D) -> Result<Option<T>, D::Error> {
    T::deserialize(json).map(Some)
}

/// One layer: the fields of its [`KronShape`] and [`Scaling`].
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LayerRecord {
    pub module: String,
    /// Number among the terms of a sum, from 1; the first term, and version 3, lack the field.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub term: Option<usize>,
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

/// Parses the document.
pub(super) fn decode(json: &str) -> Result<Manifest> {
    /// Parsed first, so that the error about a later version names the version.
    #[derive(Deserialize)]
    struct Versioned {
        version: u64,
    }
    let key = Adapter::RESERVED_KEY;
    let broken = |e: serde_json::Error| {
        Error::data(shortened(&format!("has metadata {key} that breaks the format: {e}")))
    };
    let Versioned { version } = serde_json::from_str(json).map_err(broken)?;
    if !(FACTORS_ALONE..=VERSION).contains(&version) {
        return Err(Error::data(format!(
            "is of version {version} of the format, but this program reads versions {FACTORS_ALONE} to {VERSION}"
        )));
    }
    let manifest: Manifest = serde_json::from_str(json).map_err(broken)?;
    let terms = manifest.layers.iter().filter_map(|layer| layer.term);
    let needed = needed(
        manifest.trained_tensors.is_some(),
        manifest.trained_rows.is_some(),
        terms.clone().next().is_some(),
    );
    if terms.clone().any(|term| term == 0) {
        return Err(Error::data("has a layer with term 0, which is left out"));
    }
    let empty = manifest.trained_tensors.as_ref().is_some_and(Vec::is_empty)
        || manifest.trained_rows.as_ref().is_some_and(BTreeMap::is_empty);
    if version != needed {
        return Err(Error::data(format!(
            "is of version {version}, but has the fields of version {needed}: trained_tensors since 2, trained_rows since 3, term since 4"
        )));
    }
    if empty || (manifest.trained_rows.is_some() && manifest.trained_tensors.is_none()) {
        return Err(Error::data("has trained_tensors or trained_rows that name none"));
    }
    Ok(manifest)
}

/// Returns the version that has these fields.
const fn needed(tensors: bool, rows: bool, terms: bool) -> u64 {
    match (tensors, rows, terms) {
        (_, _, true) => VERSION,
        (_, true, false) => WITHOUT_TERMS,
        (true, false, false) => WHOLE_TENSORS,
        (false, false, false) => FACTORS_ALONE,
    }
}

/// Writes the document of an adapter.
pub(super) fn encode(adapter: &Adapter) -> Result<String> {
    let trained: Vec<_> = adapter.trained_tensors().iter().map(|tensor| tensor.name().to_string()).collect();
    let rows = adapter.trained_tensors().iter();
    let rows = rows.filter_map(|tensor| Some((tensor.name().to_string(), tensor.rows()?.to_vec())));
    let rows: BTreeMap<_, _> = rows.collect();
    let manifest = Manifest {
        version: needed(
            !trained.is_empty(),
            !rows.is_empty(),
            adapter.layers().iter().any(|layer| layer.term() > 0),
        ),
        target_modules: adapter.target_modules().to_vec(),
        layers: adapter.layers().iter().map(LayerRecord::of).collect(),
        trained_tensors: Some(trained).filter(|names| !names.is_empty()),
        trained_rows: Some(rows).filter(|rows| !rows.is_empty()),
    };
    serde_json::to_string(&manifest).map_err(|e| Error::data(format!("the metadata cannot be written: {e}")))
}

impl LayerRecord {
    fn of(layer: &Layer) -> Self {
        let (shape, scaling) = (layer.shape(), layer.scaling());
        Self {
            module: layer.module().into(),
            term: Some(layer.term()).filter(|term| *term > 0),
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

    /// Returns the shape and the scaling, checked by their constructors.
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
