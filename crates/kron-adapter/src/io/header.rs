//! The header of an adapter file: its tensors are exactly its layers' factors.

use std::collections::{BTreeMap, HashSet};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::ser::{SerializeMap, Serializer};

use super::layout::{Layout, METADATA, clean};
use super::manifest::{self, Entry, Manifest};
use crate::adapter::shown;
use crate::{Adapter, Scaling};
use kron_core::{Inner, KronShape};

/// The longest header that is read or written, in bytes: room for some 30 000 layers.
pub const MAX_HEADER: u64 = 1 << 24;

/// What the header of an adapter says.
pub(super) struct Header {
    tensors: Metadata,
    layers: Vec<Entry>,
    pub target_modules: Vec<String>,
    /// Without the format's own key.
    pub metadata: BTreeMap<String, String>,
}

/// Where a layer's θ lies.
pub(super) struct Slot {
    pub module: String,
    pub scaling: Scaling,
    pub shape: KronShape,
    /// In bytes from the end of the header.
    pub start: usize,
}

/// Reads the header of a file of ours.
pub(super) fn decode(layout: Layout) -> Result<Header, String> {
    let Layout { tensors, metadata } = layout;
    let Some(mut metadata) = metadata else {
        return Err(format!("has no {METADATA}, where an adapter states its layers"));
    };
    let Some(own) = metadata.remove(Adapter::RESERVED_KEY) else {
        return Err(format!("has no key {} in {METADATA}, so it is no adapter", Adapter::RESERVED_KEY));
    };
    let Manifest { target_modules, layers, .. } = manifest::decode(&own).map_err(|e| clean(&e))?;
    Ok(Header { tensors, layers, target_modules, metadata })
}

impl Header {
    /// Every layer with its place, after checking that the tensors are exactly
    /// the layers' factors: in the order of `start` they then fill the data.
    pub fn slots(&self) -> Result<Vec<Slot>, String> {
        let mut expected = HashSet::new();
        let slots = self.layers.iter().map(|entry| {
            let (shape, scaling) =
                entry.values().map_err(|e| format!("layer {}: {e}", shown(&entry.module)))?;
            let factors = factors(&entry.module, &shape);
            let start = self.check_factors(&factors)?;
            if !factors.into_iter().all(|(name, _)| expected.insert(name)) {
                return Err(format!("has two layers of module {}", shown(&entry.module)));
            }
            Ok(Slot { module: entry.module.clone(), scaling, shape, start })
        });
        let slots = slots.collect::<Result<_, String>>()?;
        match self.tensors.offset_keys().into_iter().find(|name| !expected.contains(name)) {
            Some(extra) => Err(format!("has a tensor {} that belongs to no layer", shown(&extra))),
            None => Ok(slots),
        }
    }

    /// That a layer's factors are there and follow each other; where the first one starts.
    fn check_factors(&self, factors: &[Factor]) -> Result<usize, String> {
        let mut place = None;
        for (name, want) in factors {
            let Some(info) = self.tensors.info(name) else {
                return Err(format!("lacks the tensor {}", shown(name)));
            };
            if info.dtype != Dtype::F32 {
                return Err(format!("has tensor {} in {}, but factors are F32", shown(name), info.dtype));
            }
            if info.shape != want {
                return Err(format!(
                    "has tensor {} of {}, but its layer needs {}",
                    shown(name),
                    dims(&info.shape),
                    dims(want)
                ));
            }
            let (start, end) = info.data_offsets;
            let (first, expected) = place.unwrap_or((start, start));
            if start != expected {
                return Err(format!(
                    "has tensor {} at byte {start}, but a layer's factors follow each other, here at {expected}",
                    shown(name)
                ));
            }
            place = Some((first, end));
        }
        Ok(place.map_or(0, |(first, _)| first))
    }
}

/// A tensor's name and shape.
type Factor = (String, [usize; 2]);

/// A layer's tensors in θ's order: the one place that knows their names.
fn factors(module: &str, shape: &KronShape) -> Vec<Factor> {
    let (a_out, a_in, b_out, c_in) = (shape.a_out(), shape.a_in(), shape.b_out(), shape.c_in());
    let a = (shape.a_len() > 0).then_some(("a", [a_out, a_in]));
    let inner = match shape.inner() {
        Inner::LowRank(r) => vec![("b", [b_out, r]), ("c", [r, c_in])],
        Inner::Full => vec![("m", [b_out, c_in])],
    };
    a.into_iter().chain(inner).map(|(letter, dims)| (format!("{module}.kron_{letter}"), dims)).collect()
}

/// Length and JSON of the header of an adapter whose θs follow in the layers' order.
pub(super) fn encode(adapter: &Adapter) -> Result<Vec<u8>, String> {
    let mut metadata = adapter.metadata().clone();
    metadata.insert(Adapter::RESERVED_KEY.into(), manifest::encode(adapter)?);
    let mut json = Vec::new();
    tensors_json(adapter, &metadata, &mut json).map_err(|e| format!("the header cannot be written: {e}"))?;
    // safetensors aligns the data to 8 bytes by spaces after the JSON.
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_HEADER {
        return Err(format!("the header takes {} bytes, but the limit is {MAX_HEADER}", json.len()));
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
        for (name, [rows, cols]) in factors(layer.module(), layer.shape()) {
            let end = at + 4 * rows * cols;
            let info = TensorInfo { dtype: Dtype::F32, shape: vec![rows, cols], data_offsets: (at, end) };
            map.serialize_entry(&name, &info)?;
            at = end;
        }
    }
    map.end()
}

/// `2 × 3`, however many there are.
fn dims(shape: &[usize]) -> String {
    const SHOWN: usize = 8;
    if shape.len() > SHOWN {
        return format!("{} dimensions", shape.len());
    }
    let texts: Vec<String> = shape.iter().map(usize::to_string).collect();
    if texts.is_empty() { "no dimension".into() } else { texts.join(" × ") }
}
