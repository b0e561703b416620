//! A safetensors file in memory, its floating-point tensors widened to float64.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::files::Input;
use crate::{Error, Result};

/// Bytes of the header's length.
pub(crate) const PREFIX: usize = 8;
/// The library's own limit on a header.
const MOST_HEADER: u64 = 100_000_000;

/// A whole safetensors file: header checked, tensors decoded on demand.
#[derive(Debug)]
pub struct Tensors {
    path: String,
    bytes: Vec<u8>,
    /// Where the first tensor starts.
    data: usize,
    header: Metadata,
}

impl Tensors {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// One that cannot be read, is cut short, or breaks the format.
    pub fn read(path: &Path) -> Result<Self> {
        let mut input = Input::open(path)?;
        let mut bytes = Vec::new();
        read_header(&mut input, &mut bytes)?;
        let data = bytes.len();
        check_length(&input, &bytes[PREFIX..])?;
        input.append(input.len() - data as u64, &mut bytes)?;
        let path = input.path().to_string();
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| Error::data(format!("{path} is not a safetensors file: {e}")))?;
        Ok(Self { path, bytes, data, header })
    }

    /// The file's name, as messages give it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Free text by key.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.header.offset_keys();
        names.sort();
        names
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// A tensor's dtype and shape.
    ///
    /// # Errors
    /// No such tensor.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.info(name).ok_or_else(|| Error::data(format!("{} has no tensor {name}", self.path)))
    }

    /// A tensor's numbers, exact.
    ///
    /// # Errors
    /// No such tensor, or one that is not f16, bf16, f32 or f64.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let info = self.info(name)?;
        let (start, end) = info.data_offsets;
        let bytes = &self.bytes[self.data + start..self.data + end];
        Ok(match info.dtype {
            Dtype::F16 => decode(bytes, |b| f16::from_le_bytes(b).into()),
            Dtype::BF16 => decode(bytes, |b| bf16::from_le_bytes(b).into()),
            Dtype::F32 => decode(bytes, |b| f32::from_le_bytes(b).into()),
            Dtype::F64 => decode(bytes, f64::from_le_bytes),
            other => {
                return Err(Error::data(format!(
                    "{}: {name} is {other}, but numbers are F16, BF16, F32 or F64",
                    self.path
                )));
            }
        })
    }
}

fn decode<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<N>().0.iter().map(|&b| number(b)).collect()
}

/// The header's length and the header.
pub(crate) fn read_header(input: &mut Input, bytes: &mut Vec<u8>) -> Result<()> {
    input.append(PREFIX as u64, bytes)?;
    let Some((prefix, _)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(cut_short(
            input,
            format!("it is {} bytes long, a header's length takes {PREFIX}", input.len()),
        ));
    };
    let (len, rest) = (u64::from_le_bytes(*prefix), input.len().saturating_sub(PREFIX as u64));
    if len > rest {
        return Err(cut_short(input, format!("its header is said to take {len} bytes of {rest}")));
    }
    if len > MOST_HEADER {
        let path = input.path();
        return Err(Error::data(format!(
            "{path} has a header of {len} bytes, but the limit is {MOST_HEADER}"
        )));
    }
    input.append(len, bytes)
}

/// That the file is as long as its header says: the commonest damage deserves
/// its own sentence before any tensor is read, and the library adds offsets up
/// without an overflow check.
pub(crate) fn check_length(input: &Input, header: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Entry {
        Tensor { data_offsets: (u64, u64) },
        Other(IgnoredAny),
    }
    let entries: BTreeMap<String, Entry> = serde_json::from_slice(header).map_err(|e| {
        Error::data(format!("{} is not a safetensors file: its header is not JSON: {e}", input.path()))
    })?;
    let end = entries.values().map(|entry| match entry {
        Entry::Tensor { data_offsets } => data_offsets.1,
        Entry::Other(_) => 0,
    });
    let (end, rest) = (end.max().unwrap_or(0), input.len() - (PREFIX + header.len()) as u64);
    if end != rest {
        return Err(cut_short(input, format!("its tensors take {end} bytes, but {rest} follow the header")));
    }
    Ok(())
}

fn cut_short(input: &Input, what: String) -> Error {
    Error::data(format!("{} is damaged or cut short: {what}", input.path()))
}
