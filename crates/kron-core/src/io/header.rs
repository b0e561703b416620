//! The header of the file: safetensors' own JSON, read strictly.
//!
//! The `safetensors` crate checks that the tensors cover the data without gap
//! or overlap and that their sizes follow from dtype and shape. It does not
//! notice a name that occurs twice (the last one wins), and it adds offsets up
//! without an overflow check; both are caught here before it looks.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};

use super::manifest::{self, Entry, Manifest};
use crate::adapter::shown;
use crate::{Adapter, Inner, KronShape, Scaling};

/// Bytes of the header's length, in front of it.
pub(super) const PREFIX: usize = 8;

/// The longest header that is read or written, in bytes: room for some 30 000 layers.
pub const MAX_HEADER: u64 = 1 << 24;

/// safetensors' name for the map of strings.
const METADATA: &str = "__metadata__";

/// A header whose tensors are known to lie in the data, without gap or overlap.
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

/// Reads the JSON of a header that is followed by `data_len` bytes.
pub(super) fn decode(json: &[u8], data_len: u64) -> Result<Header, String> {
    let Raw { metadata, mut tensors } = serde_json::from_slice(json)
        .map_err(|e| format!("has a header that is not safetensors JSON: {}", clean(&e.to_string())))?;
    for (name, info) in &tensors {
        let (start, end) = info.data_offsets;
        if start > end || end as u64 > data_len {
            return Err(format!(
                "is damaged or cut short: tensor {} lies at {start}..{end} of {data_len} bytes",
                shown(name)
            ));
        }
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let tensors = Metadata::new(None, tensors)
        .map_err(|e| format!("has a header that breaks safetensors' rules: {}", clean(&e.to_string())))?;
    if tensors.data_len() as u64 != data_len {
        let end = tensors.data_len();
        return Err(format!("is damaged: its tensors end at {end} of {data_len} bytes"));
    }

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

/// The header as it stands: tensors in its order, no name twice.
struct Raw {
    metadata: Option<BTreeMap<String, String>>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Raw, M::Error> {
                let mut raw = Raw { metadata: None, tensors: Vec::new() };
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(M::Error::custom(format!("{} occurs twice", shown(&name))));
                    }
                    match name.as_str() {
                        METADATA => raw.metadata = Some(map.next_value::<Texts>()?.0),
                        _ => raw.tensors.push((name, map.next_value()?)),
                    }
                }
                Ok(raw)
            }
        }
        from.deserialize_map(Entries)
    }
}

/// A map of strings, no key twice.
struct Texts(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Texts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Texts, M::Error> {
                let mut texts = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    let name = shown(&key);
                    if texts.insert(key, value).is_some() {
                        return Err(M::Error::custom(format!("{name} occurs twice")));
                    }
                }
                Ok(Texts(texts))
            }
        }
        from.deserialize_map(Entries)
    }
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

/// A library's message about foreign text, fit for one line.
fn clean(message: &str) -> String {
    const SHOWN: usize = 300;
    let line: String =
        message.chars().take(SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if line.len() < message.len() && message.chars().nth(SHOWN).is_some() { line + "…" } else { line }
}
