//! A safetensors file in memory, its tensors decoded on demand.

use std::collections::BTreeMap;
use std::path::Path;

use kron_core::Element;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use crate::elements::{decode, element_dtype, first_not_finite};
use crate::io::{Input, Layout, MAX_HEADER};
use crate::{Error, Result, text, with_dtype};

/// A safetensors file in memory, its header checked.
#[derive(Debug)]
pub struct Tensors {
    path: String,
    bytes: Vec<u8>,
    /// Offset of the first tensor.
    data: usize,
    layout: Layout,
    /// Names in the file, by the names that stand for them; `None` where both are the same.
    renamed: Option<BTreeMap<String, String>>,
}

impl Tensors {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is truncated, or breaks the format.
    pub fn read(path: &Path) -> Result<Self> {
        let mut input = Input::open(path)?;
        let (header, layout) = input.layout()?;
        Self::load(input, header, layout)
    }

    /// Checks the bytes of a file that was read already. `name` names it in later messages.
    ///
    /// # Errors
    /// Fails if the bytes are truncated or break the format; the message does not have `name`.
    pub fn from_bytes(name: impl Into<String>, bytes: Vec<u8>) -> Result<Self> {
        let (header, layout) = Layout::read(&mut bytes.as_slice(), bytes.len() as u64, MAX_HEADER)?;
        Ok(Self { path: name.into(), data: header.len(), bytes, layout, renamed: None })
    }

    /// Reads the data of a file whose header was read.
    pub(crate) fn load(mut input: Input, header: Vec<u8>, layout: Layout) -> Result<Self> {
        let (data, mut bytes) = (header.len(), header);
        input.append(input.len() - data as u64, &mut bytes)?;
        if bytes.len() as u64 != input.len() {
            return Err(Error::data(format!("{} became shorter while it was read", input.path())));
        }
        Ok(Self { path: input.path().into(), bytes, data, layout, renamed: None })
    }

    /// Keeps the tensors of this map alone, from a name to the name in the file.
    pub(crate) fn with_names(self, names: BTreeMap<String, String>) -> Self {
        Self { renamed: Some(names), ..self }
    }

    /// Path of the file, as messages give it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Length of the file in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a size, not a collection")]
    pub fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns a text of the metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.layout.metadata.as_ref()?.get(key).map(String::as_str)
    }

    /// Keys and texts of the metadata, sorted by key.
    pub fn metadata_entries(&self) -> impl Iterator<Item = (&str, &str)> {
        let entries = self.layout.metadata.iter().flatten();
        entries.map(|(key, text)| (key.as_str(), text.as_str()))
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        if let Some(renamed) = &self.renamed {
            return renamed.keys().cloned().collect();
        }
        let mut names = self.layout.tensors.offset_keys();
        names.sort();
        names
    }

    /// Returns true if there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.info(name).is_ok()
    }

    /// Returns a tensor's dtype and shape.
    ///
    /// # Errors
    /// Fails if there is no such tensor.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        let stored = match &self.renamed {
            Some(renamed) => renamed.get(name).map(String::as_str),
            None => Some(name),
        };
        stored
            .and_then(|stored| self.layout.tensors.info(stored))
            .ok_or_else(|| Error::data(format!("{} has no tensor {}", self.path, text::name(name))))
    }

    /// Returns a tensor's bytes as the file has them.
    ///
    /// # Errors
    /// Fails if there is no such tensor.
    pub fn data(&self, name: &str) -> Result<&[u8]> {
        Ok(self.stored(name)?.1)
    }

    /// Returns a tensor's values, exact in float64.
    ///
    /// # Errors
    /// Fails if there is no such tensor, or its dtype is not F16, BF16, F32 or F64.
    pub fn values_f64(&self, name: &str) -> Result<Vec<f64>> {
        let (dtype, bytes) = self.stored(name)?;
        if dtype == Dtype::F64 {
            return Ok(decode::<f64>(bytes).collect());
        }
        Ok(self.values_f32(name)?.into_iter().flatten().map(f64::from).collect())
    }

    /// Returns a tensor's values, exact in float32; `None` for a tensor of F64.
    ///
    /// # Errors
    /// Fails as [`Tensors::values_f64`] does.
    pub fn values_f32(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let (dtype, bytes) = self.stored(name)?;
        if dtype == Dtype::F64 {
            return Ok(None);
        }
        let Some(dtype) = element_dtype(dtype) else {
            return Err(Error::data(format!(
                "{}: {} is {dtype}, but values are F16, BF16, F32 or F64",
                self.path,
                text::name(name)
            )));
        };
        Ok(Some(with_dtype!(dtype, E => decode::<E>(bytes).map(Element::to_f32).collect())))
    }

    /// Returns the value of a tensor of one element, in any number of dimensions and of any numeric dtype.
    ///
    /// # Errors
    /// Fails if there is no such tensor, and if it has more or fewer elements or another dtype.
    pub(crate) fn number(&self, name: &str) -> Result<f64> {
        let (dtype, bytes) = self.stored(name)?;
        let number = match dtype {
            Dtype::I8 => one(bytes).map(|b| i8::from_le_bytes(b).into()),
            Dtype::U8 => one(bytes).map(|b| u8::from_le_bytes(b).into()),
            Dtype::I16 => one(bytes).map(|b| i16::from_le_bytes(b).into()),
            Dtype::U16 => one(bytes).map(|b| u16::from_le_bytes(b).into()),
            Dtype::I32 => one(bytes).map(|b| i32::from_le_bytes(b).into()),
            Dtype::U32 => one(bytes).map(|b| u32::from_le_bytes(b).into()),
            Dtype::I64 => one(bytes).map(|b| i64::from_le_bytes(b) as f64),
            Dtype::U64 => one(bytes).map(|b| u64::from_le_bytes(b) as f64),
            _ => self.values_f64(name)?.as_array::<1>().map(|[v]| *v),
        };
        number.ok_or_else(|| {
            Error::data(format!("{}: {} is not one number, as an alpha is", self.path, text::name(name)))
        })
    }

    /// Returns the values of `kind`, a factor or another tensor of an adapter.
    ///
    /// # Errors
    /// Fails as [`Tensors::values_f64`] does, and on a value that is not finite or that float32
    /// does not hold exactly.
    pub(crate) fn finite_f32(&self, name: &str, kind: &str) -> Result<Vec<f32>> {
        let refused = |what: String| Error::data(format!("{}: {} {what}", self.path, text::name(name)));
        let data = match self.values_f32(name)? {
            Some(data) => data,
            None => {
                let wide = self.values_f64(name)?;
                let lost = wide.iter().position(|&v| v.is_finite() && f64::from(v as f32) != v);
                if let Some(at) = lost.filter(|&at| (wide[at] as f32).is_finite()) {
                    let v = wide[at];
                    return Err(refused(format!("has {v} at {at}, which float32 does not hold exactly")));
                }
                wide.into_iter().map(|v| v as f32).collect()
            }
        };
        match first_not_finite(&data) {
            None => Ok(data),
            Some(at) => Err(refused(format!(
                "has {} at {at}, but every value of {kind} is finite in float32",
                data[at]
            ))),
        }
    }

    fn stored(&self, name: &str) -> Result<(Dtype, &[u8])> {
        let info = self.info(name)?;
        let (start, end) = info.data_offsets;
        Ok((info.dtype, &self.bytes[self.data + start..self.data + end]))
    }
}

/// Returns the bytes of one value, if there is exactly one.
fn one<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}
