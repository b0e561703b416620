//! The one parser of safetensors headers: length, JSON, and tensors that fill the rest.
//!
//! The `safetensors` crate checks that the tensors cover the data without gap
//! or overlap and that their sizes follow from dtype and shape. It does not
//! notice a name that occurs twice (the last one wins), and it adds up offsets
//! without an overflow check; both are checked here first.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::text::{json_fault, shortened, shown};
use crate::{Error, Result};

/// Bytes of the header's length, which stands before the header.
const PREFIX: usize = 8;

/// Key of the map of strings in a safetensors header.
pub const METADATA: &str = "__metadata__";

/// The header of a safetensors file whose tensors lie in the data without gap or overlap.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Tensors in the order of the file; offsets count from the end of the header.
    pub tensors: Metadata,
    /// Free text by key; `None` if the file has none.
    pub metadata: Option<BTreeMap<String, String>>,
}

impl Layout {
    /// Reads the header of a file of `len` bytes from its start. Returns the
    /// header's bytes, length and JSON, and their meaning.
    ///
    /// # Errors
    /// Fails if the header is longer than `limit` or is not JSON of this form, if a
    /// name occurs twice, if the tensors do not fill the file, and if the system refuses.
    pub fn read(from: &mut impl Read, len: u64, limit: u64) -> Result<(Vec<u8>, Self)> {
        let Some(after) = len.checked_sub(PREFIX as u64) else {
            return Err(Error::data(format!(
                "is cut short: it is {len} bytes long, but the length of the header alone takes {PREFIX}"
            )));
        };
        let mut bytes = vec![0; PREFIX];
        from.read_exact(&mut bytes).map_err(Error::reading)?;
        let header_len = bytes.first_chunk().map_or(0, |prefix| u64::from_le_bytes(*prefix));
        if header_len > limit.max(after) {
            return Err(Error::data(format!(
                "is not a safetensors file: its first {PREFIX} bytes would mean a header of {header_len} bytes, but the limit is {limit}"
            )));
        }
        if header_len > limit {
            return Err(Error::data(format!("has a header of {header_len} bytes, but the limit is {limit}")));
        }
        let Some(data_len) = after.checked_sub(header_len) else {
            return Err(Error::data(format!(
                "is cut short: its header takes {header_len} bytes, but {after} follow"
            )));
        };
        bytes.resize(PREFIX + header_len as usize, 0);
        from.read_exact(&mut bytes[PREFIX..]).map_err(Error::reading)?;
        let layout = Self::parse(&bytes[PREFIX..], data_len)?;
        Ok((bytes, layout))
    }

    /// Reads the JSON of a header that is followed by `data_len` bytes.
    fn parse(json: &[u8], data_len: u64) -> Result<Self> {
        let Raw { metadata, mut tensors } = serde_json::from_slice(json).map_err(|e| {
            Error::data(format!("has a header that is not safetensors JSON: {}", json_fault(json, &e)))
        })?;
        for (name, info) in &tensors {
            let (start, end) = info.data_offsets;
            if start > end || end as u64 > data_len {
                return Err(Error::data(format!(
                    "is damaged or cut short: tensor {} lies at {start}..{end} of {data_len} bytes",
                    shown(name)
                )));
            }
        }
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let tensors = Metadata::new(None, tensors).map_err(|e| {
            Error::data(format!("has a header that breaks safetensors' rules: {}", shortened(&e.to_string())))
        })?;
        if tensors.data_len() as u64 != data_len {
            let end = tensors.data_len();
            return Err(Error::data(format!("is damaged: its tensors end at {end} of {data_len} bytes")));
        }
        Ok(Self { tensors, metadata })
    }
}

/// The header as written: tensors in its order, no name twice.
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
