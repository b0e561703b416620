//! Tensors to be written into a foreign safetensors file.

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::matrix::Matrix;
use crate::{Error, Result};

/// A tensor to write.
pub enum TensorData {
    F32(Matrix),
    /// A tensor without dimensions.
    Scalar(f64),
}

impl TensorData {
    /// Returns dtype, shape and bytes; a scalar is float32 if that is exact, else float64.
    fn parts(&self) -> (Dtype, Vec<usize>, Cow<'_, [u8]>) {
        match self {
            TensorData::F32(Matrix { rows, cols, data }) => {
                let bytes = match cfg!(target_endian = "little") {
                    true => Cow::Borrowed(bytemuck::cast_slice(data)),
                    false => data.iter().flat_map(|v| v.to_le_bytes()).collect(),
                };
                (Dtype::F32, vec![*rows, *cols], bytes)
            }
            TensorData::Scalar(v) if f64::from(*v as f32) == *v => {
                (Dtype::F32, vec![], (*v as f32).to_le_bytes().to_vec().into())
            }
            TensorData::Scalar(v) => (Dtype::F64, vec![], v.to_le_bytes().to_vec().into()),
        }
    }
}

/// Returns the bytes of the file, with the metadata `format: pt` that PyTorch's readers require.
pub fn serialize(tensors: &[(String, TensorData)]) -> Result<Vec<u8>> {
    let unwritable = |e| Error::data(format!("the tensors cannot be written: {e}"));
    let parts: Vec<_> = tensors.iter().map(|(name, tensor)| (name, tensor.parts())).collect();
    let views = parts.iter().map(|(name, (dtype, shape, bytes))| {
        TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(unwritable)?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize(views, Some(metadata)).map_err(unwritable)
}
