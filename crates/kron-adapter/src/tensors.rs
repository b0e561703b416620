//! A safetensors file in memory, its floating-point tensors widened to float64.

use std::path::Path;

use crate::io::Layout;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use crate::files::Input;
use crate::{Error, Result};

/// A whole safetensors file: header checked, tensors decoded on demand.
#[derive(Debug)]
pub struct Tensors {
    path: String,
    bytes: Vec<u8>,
    /// Where the first tensor starts.
    data: usize,
    layout: Layout,
}

impl Tensors {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// One that cannot be read, is cut short, or breaks the format.
    pub fn read(path: &Path) -> Result<Self> {
        let mut input = Input::open(path)?;
        let (mut bytes, layout) = input.layout()?;
        let data = bytes.len();
        input.append(input.len() - data as u64, &mut bytes)?;
        if bytes.len() as u64 != input.len() {
            return Err(Error::data(format!("{} became shorter while it was read", input.path())));
        }
        Ok(Self { path: input.path().into(), bytes, data, layout })
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
        self.layout.metadata.as_ref()?.get(key).map(String::as_str)
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.layout.tensors.offset_keys();
        names.sort();
        names
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.layout.tensors.info(name).is_some()
    }

    /// A tensor's dtype and shape.
    ///
    /// # Errors
    /// No such tensor.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.layout
            .tensors
            .info(name)
            .ok_or_else(|| Error::data(format!("{} has no tensor {name}", self.path)))
    }

    /// A tensor's numbers, exact.
    ///
    /// # Errors
    /// No such tensor, or one that is not f16, bf16, f32 or f64.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let (dtype, bytes) = self.stored(name)?;
        Ok(match dtype {
            Dtype::F64 => decode(bytes, f64::from_le_bytes),
            _ => self.singles(name)?.into_iter().flatten().map(f64::from).collect(),
        })
    }

    /// The same in float32, which is exact; `None` for a tensor of f64.
    ///
    /// # Errors
    /// As [`Tensors::numbers`].
    pub fn singles(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let (dtype, bytes) = self.stored(name)?;
        Ok(match dtype {
            Dtype::F16 => Some(decode(bytes, |b| f16::from_le_bytes(b).into())),
            Dtype::BF16 => Some(decode(bytes, |b| bf16::from_le_bytes(b).into())),
            Dtype::F32 => Some(decode(bytes, f32::from_le_bytes)),
            Dtype::F64 => None,
            other => {
                return Err(Error::data(format!(
                    "{}: {name} is {other}, but numbers are F16, BF16, F32 or F64",
                    self.path
                )));
            }
        })
    }

    fn stored(&self, name: &str) -> Result<(Dtype, &[u8])> {
        let info = self.info(name)?;
        let (start, end) = info.data_offsets;
        Ok((info.dtype, &self.bytes[self.data + start..self.data + end]))
    }
}

fn decode<const N: usize, T>(bytes: &[u8], number: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&b| number(b)).collect()
}
