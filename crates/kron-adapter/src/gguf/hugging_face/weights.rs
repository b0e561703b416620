//! Dequantised weights as one safetensors file.

use std::io::Write;

use kron_core::{Dtype, Element};
use serde_json::{Map, json};

use super::names::HuggingFaceTensor;
use crate::elements::{file_dtype, first_not_finite};
use crate::gguf::{Blocks, Gguf};
use crate::{Error, Progress, Result, with_dtype};

/// Number of values that are dequantised at once.
const BAND: usize = 1 << 18;

/// Writes all tensors in `dtype`, a band of rows at a time; `progress` counts the bytes.
///
/// # Errors
/// Fails if a value is not finite in `dtype`, if the GGUF cannot be read, and if `to` or `progress` fails.
pub(super) fn write(
    gguf: &mut Gguf,
    tensors: &[HuggingFaceTensor],
    dtype: Dtype,
    to: &mut dyn Write,
    progress: Progress,
) -> Result<()> {
    let refused = |e| Error::io("the weights cannot be written", e);
    to.write_all(&header(tensors, dtype)).map_err(refused)?;
    for tensor in tensors {
        let blocks = gguf.hugging_face_blocks(tensor)?;
        with_dtype!(dtype, E => bands::<E>(&blocks, |bytes| {
            to.write_all(bytes).map_err(refused)?;
            progress(bytes.len() as u64)
        }))
        .map_err(|e| e.about(&tensor.name))?;
    }
    Ok(())
}

/// Returns the length of the file's header and the header.
fn header(tensors: &[HuggingFaceTensor], dtype: Dtype) -> Vec<u8> {
    let (mut entries, mut end) = (Map::new(), 0);
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    for tensor in tensors {
        let start = end;
        end += tensor.shape.iter().product::<usize>() * dtype.size();
        let entry = json!({
            "dtype": format!("{:?}", file_dtype(dtype)),
            "shape": tensor.shape,
            "data_offsets": [start, end],
        });
        entries.insert(tensor.name.clone(), entry);
    }
    let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
    // Loaders map the data, which begins at a multiple of eight.
    json.resize(json.len().next_multiple_of(8), b' ');
    [&(json.len() as u64).to_le_bytes()[..], &json].concat()
}

/// Gives the matrix's bytes to `put`, some rows at a time.
fn bands<E: Element>(blocks: &Blocks, mut put: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let (rows, columns) = (blocks.rows(), blocks.columns());
    let band = (BAND / columns).max(1);
    let mut values = vec![0.0; band.min(rows) * columns];
    for first in (0..rows).step_by(band) {
        let last = rows.min(first + band);
        let values = &mut values[..(last - first) * columns];
        blocks.dequantise(first..last, values)?;
        let rounded: Vec<E> = values.iter().map(|v| E::from_f32(*v)).collect();
        if let Some(i) = first_not_finite(&rounded) {
            let dtype = E::DTYPE;
            return Err(Error::data(format!(
                "row {} holds {}, which is not finite in {dtype}",
                first + i / columns,
                values[i]
            )));
        }
        put(bytemuck::cast_slice(&rounded))?;
    }
    Ok(())
}
