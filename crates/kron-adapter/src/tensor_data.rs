//! Tensors to be written into a foreign safetensors file.

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::matrix::Matrix;
use crate::{Error, Result, TrainedTensor};

/// A tensor to write.
pub enum TensorData<'a> {
    F32(Matrix),
    Trained(&'a TrainedTensor),
    /// A tensor without dimensions.
    Scalar(f64),
}

impl TensorData<'_> {
    /// Returns dtype, shape and bytes; a scalar is float32 if that is exact, else float64.
    fn parts(&self) -> (Dtype, Vec<usize>, Cow<'_, [u8]>) {
        match self {
            TensorData::F32(Matrix { rows, cols, data }) => {
                (Dtype::F32, vec![*rows, *cols], little_endian(data))
            }
            TensorData::Trained(tensor) => {
                (Dtype::F32, tensor.shape().to_vec(), little_endian(tensor.values()))
            }
            TensorData::Scalar(v) if f64::from(*v as f32) == *v => {
                (Dtype::F32, vec![], (*v as f32).to_le_bytes().to_vec().into())
            }
            TensorData::Scalar(v) => (Dtype::F64, vec![], v.to_le_bytes().to_vec().into()),
        }
    }
}

fn little_endian(values: &[f32]) -> Cow<'_, [u8]> {
    match cfg!(target_endian = "little") {
        true => Cow::Borrowed(bytemuck::cast_slice(values)),
        false => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Returns the bytes of the file, with the metadata `format: pt` that PyTorch's readers require, and one more text.
pub fn serialize(tensors: &[(String, TensorData)], text: Option<(&str, &str)>) -> Result<Vec<u8>> {
    let unwritable = |e| Error::data(format!("the tensors cannot be written: {e}"));
    let parts: Vec<_> = tensors.iter().map(|(name, tensor)| (name, tensor.parts())).collect();
    let views = parts.iter().map(|(name, (dtype, shape, bytes))| {
        TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(unwritable)?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(unwritable)?;
    Ok(match text {
        None => bytes,
        Some((key, text)) => with_text(bytes, key, text),
    })
}

/// Adds a text to a file's metadata; safetensors writes two texts in either order, and equal adapters give equal bytes.
fn with_text(file: Vec<u8>, key: &str, text: &str) -> Vec<u8> {
    const FORMAT: &str = r#"{"__metadata__":{"format":"pt""#;
    let start = 8 + FORMAT.len();
    let len = file.first_chunk().map_or(0, |len| u64::from_le_bytes(*len)) as usize;
    debug_assert_eq!(&file[8..start], FORMAT.as_bytes());
    let entry = format!(",{}:{}", Value::from(key), Value::from(text));
    // safetensors aligns the data to 8 bytes by spaces after the JSON.
    let padded = (len + entry.len()).next_multiple_of(8);
    let spaces = vec![b' '; padded - len - entry.len()];
    let (header, data) = file.split_at(8 + len);
    [&(padded as u64).to_le_bytes(), &header[8..start], entry.as_bytes(), &header[start..], &spaces, data]
        .concat()
}
