//! The table of an adapter file: its tensors are exactly its layers' factors and its trained tensors.

use std::collections::{BTreeMap, HashSet};

use kron_core::{Inner, KronShape};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::ser::{SerializeMap, Serializer};

use super::manifest::{self, LayerRecord, Manifest};
use crate::io::{Layout, METADATA};
use crate::text::shown;
use crate::trained::check_shape;
use crate::{Adapter, Error, Result, Scaling};

/// Longest header that is read or written, in bytes: enough for some 30 000 layers.
pub const MAX_HEADER: u64 = 1 << 24;

/// The decoded header of an adapter file.
pub(super) struct Table {
    tensors: Metadata,
    layers: Vec<LayerRecord>,
    trained: Vec<String>,
    rows: BTreeMap<String, Vec<usize>>,
    pub target_modules: Vec<String>,
    /// Without the format's own key.
    pub metadata: BTreeMap<String, String>,
}

/// Position of a layer's θ in the file.
pub(super) struct LayerEntry {
    pub module: String,
    pub term: usize,
    pub scaling: Scaling,
    pub shape: KronShape,
    /// First byte, counted from the end of the header.
    pub start: usize,
}

/// Position of a trained tensor in the file.
pub(super) struct TrainedEntry<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    /// Indices of its rows in the model's tensor.
    pub rows: Option<&'a [usize]>,
    /// Number of its values.
    pub len: usize,
    /// First byte, counted from the end of the header.
    pub start: usize,
}

/// Decodes the header of a file of this project.
pub(super) fn decode(layout: Layout) -> Result<Table> {
    let Layout { tensors, metadata } = layout;
    let Some(mut metadata) = metadata else {
        return Err(Error::data(format!("has no {METADATA}, where an adapter states its layers")));
    };
    let Some(own) = metadata.remove(Adapter::RESERVED_KEY) else {
        let key = Adapter::RESERVED_KEY;
        return Err(Error::data(format!("has no key {key} in {METADATA}, so it is not an adapter")));
    };
    let Manifest { target_modules, layers, trained_tensors, trained_rows, .. } = manifest::decode(&own)?;
    let (trained, rows) = (trained_tensors.unwrap_or_default(), trained_rows.unwrap_or_default());
    let names: HashSet<&String> = trained.iter().collect();
    if let Some(name) = rows.keys().find(|name| !names.contains(name)) {
        return Err(Error::data(format!("has trained_rows of {}, which is no trained tensor", shown(name))));
    }
    Ok(Table { tensors, layers, trained, rows, target_modules, metadata })
}

impl Table {
    /// Returns every layer and every trained tensor with its position, after checking that the
    /// tensors are exactly these: in the order of `start` they fill the data.
    pub fn entries(&self) -> Result<(Vec<LayerEntry>, Vec<TrainedEntry<'_>>)> {
        let mut expected = HashSet::new();
        let entries = self.layers.iter().map(|record| {
            let (module, term) = (record.module.clone(), record.term.unwrap_or(0));
            let (shape, scaling) =
                record.values().map_err(|e| e.about(format_args!("layer {}", shown(&module))))?;
            let factors = factors(&module, term, &shape);
            let start = self.check_factors(&factors)?;
            if !factors.into_iter().all(|(name, _)| expected.insert(name)) {
                return Err(Error::data(format!("has two layers of module {}", shown(&module))));
            }
            Ok(LayerEntry { module, term, scaling, shape, start })
        });
        let entries = entries.collect::<Result<_>>()?;
        let trained = self.trained.iter().map(|name| {
            if !expected.insert(name.clone()) {
                return Err(Error::data(format!("has trained tensor {} twice, or as a factor", shown(name))));
            }
            self.trained_entry(name)
        });
        let trained = trained.collect::<Result<_>>()?;
        match self.tensors.offset_keys().into_iter().find(|name| !expected.contains(name)) {
            Some(extra) => Err(Error::data(format!(
                "has a tensor {} that belongs to no layer and is not among the trained tensors",
                shown(&extra)
            ))),
            None => Ok((entries, trained)),
        }
    }

    fn trained_entry<'a>(&'a self, name: &'a str) -> Result<TrainedEntry<'a>> {
        let Some(info) = self.tensors.info(name) else {
            return Err(Error::data(format!("lacks the trained tensor {}", shown(name))));
        };
        let refused = |why: String| Error::data(format!("has trained tensor {} {why}", shown(name)));
        if info.dtype != Dtype::F32 {
            return Err(refused(format!("in {}, but trained tensors are F32", info.dtype)));
        }
        check_shape(&info.shape).map_err(|e| refused(format!("that {}", e.message())))?;
        let (start, end) = info.data_offsets;
        let rows = self.rows.get(name).map(Vec::as_slice);
        if rows.is_some_and(|rows| info.shape.len() != 2 || info.shape[0] != rows.len()) {
            return Err(refused(format!("of {}, but trained_rows has other rows", dims(&info.shape))));
        }
        Ok(TrainedEntry { name, shape: &info.shape, rows, len: (end - start) / size_of::<f32>(), start })
    }

    /// Checks that a layer's factors exist and follow each other; returns the start of the first.
    fn check_factors(&self, factors: &[Factor]) -> Result<usize> {
        let mut place = None;
        for (name, want) in factors {
            let refused = |why: String| Err(Error::data(format!("has tensor {} {why}", shown(name))));
            let Some(info) = self.tensors.info(name) else {
                return Err(Error::data(format!("lacks the tensor {}", shown(name))));
            };
            if info.dtype != Dtype::F32 {
                return refused(format!("in {}, but factors are F32", info.dtype));
            }
            if info.shape != want {
                return refused(format!("of {}, but its layer needs {}", dims(&info.shape), dims(want)));
            }
            let (start, end) = info.data_offsets;
            let (first, expected) = place.unwrap_or((start, start));
            if start != expected {
                return refused(format!(
                    "at byte {start}, but a layer's factors follow each other, here at {expected}"
                ));
            }
            place = Some((first, end));
        }
        Ok(place.map_or(0, |(first, _)| first))
    }
}

/// Name and shape of a tensor.
type Factor = (String, [usize; 2]);

/// Returns a layer's tensors in θ's order, `q.kron_a` of a first term and `q.kron1_a` of the next. No other code knows
/// their names.
fn factors(module: &str, term: usize, shape: &KronShape) -> Vec<Factor> {
    let term = if term == 0 { String::new() } else { term.to_string() };
    let (a_out, a_in, b_out, c_in) = (shape.a_out(), shape.a_in(), shape.b_out(), shape.c_in());
    let a = (shape.a_len() > 0).then_some(("a", [a_out, a_in]));
    let inner = match shape.inner() {
        Inner::LowRank(r) => vec![("b", [b_out, r]), ("c", [r, c_in])],
        Inner::Full => vec![("m", [b_out, c_in])],
    };
    a.into_iter().chain(inner).map(|(letter, dims)| (format!("{module}.kron{term}_{letter}"), dims)).collect()
}

/// Encodes the header, length and JSON, of an adapter whose θs follow in the layers' order, and its trained tensors after them.
pub(super) fn encode(adapter: &Adapter) -> Result<Vec<u8>> {
    let mut metadata = adapter.metadata().clone();
    metadata.insert(Adapter::RESERVED_KEY.into(), manifest::encode(adapter)?);
    let mut json = Vec::new();
    tensors_json(adapter, &metadata, &mut json)
        .map_err(|e| Error::data(format!("the header cannot be written: {e}")))?;
    // safetensors aligns the data to 8 bytes by spaces after the JSON.
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_HEADER {
        let len = json.len();
        return Err(Error::data(format!("the header takes {len} bytes, but the limit is {MAX_HEADER}")));
    }
    Ok([&(json.len() as u64).to_le_bytes(), json.as_slice()].concat())
}

fn tensors_json(
    adapter: &Adapter,
    metadata: &BTreeMap<String, String>,
    out: &mut Vec<u8>,
) -> serde_json::Result<()> {
    let mut json = serde_json::Serializer::new(out);
    let mut map = json.serialize_map(None)?;
    map.serialize_entry(METADATA, metadata)?;
    let mut at = 0;
    for layer in adapter.layers() {
        for (name, [rows, cols]) in factors(layer.module(), layer.term(), layer.shape()) {
            let end = at + 4 * rows * cols;
            let info = TensorInfo { dtype: Dtype::F32, shape: vec![rows, cols], data_offsets: (at, end) };
            map.serialize_entry(&name, &info)?;
            at = end;
        }
    }
    for tensor in adapter.trained_tensors() {
        let end = at + size_of_val(tensor.values());
        let info = TensorInfo { dtype: Dtype::F32, shape: tensor.shape().to_vec(), data_offsets: (at, end) };
        map.serialize_entry(tensor.name(), &info)?;
        at = end;
    }
    map.end()
}

/// Formats a shape as `2 × 3`; a long one as its number of dimensions.
fn dims(shape: &[usize]) -> String {
    const SHOWN: usize = 8;
    if shape.len() > SHOWN {
        return format!("{} dimensions", shape.len());
    }
    let texts: Vec<String> = shape.iter().map(usize::to_string).collect();
    if texts.is_empty() { "no dimension".into() } else { texts.join(" × ") }
}
