//! Dequantised weights as one file: safetensors, or a GGUF again.

use std::collections::HashMap;
use std::io::Write;

use kron_core::{Dtype, Element};
use serde_json::{Map, json};

use super::names::HuggingFaceTensor;
use super::tensors::LlamaTensors;
use crate::elements::{file_dtype, first_not_finite};
use crate::gguf::header::ALIGNMENT_KEY;
use crate::gguf::writer::{GgufHeader, padding};
use crate::gguf::{BlockType, Gguf};
use crate::{Error, Progress, Result, with_dtype};

/// Number of values that are dequantised at once.
const BAND: usize = 1 << 20;

/// Key of the type of most tensors.
const FILE_TYPE: &str = "general.file_type";
/// Beginning of the keys that describe how a file was quantised.
const QUANTISATION: &str = "quantize.";

/// Callback that changes values before they are rounded: takes the tensor, the index of the first row, and
/// whole rows in Hugging Face's order.
pub type ChangeRows<'a> = &'a mut dyn FnMut(&HuggingFaceTensor, usize, &mut [f32]) -> Result<()>;

/// Writes all tensors in `dtype` as safetensors, a band of rows at a time; `progress` counts the bytes.
///
/// # Errors
/// Fails if a value is not finite in `dtype`, if the GGUF cannot be read, and if `change`, `to` or
/// `progress` fails.
pub(super) fn write_safetensors(
    gguf: &mut Gguf,
    tensors: &[HuggingFaceTensor],
    dtype: Dtype,
    change: ChangeRows,
    to: &mut dyn Write,
    progress: Progress,
) -> Result<()> {
    let mut put = |bytes: &[u8]| {
        to.write_all(bytes).map_err(refused)?;
        progress(bytes.len() as u64)
    };
    put(&header(tensors, dtype))?;
    tensors.iter().try_for_each(|tensor| {
        with_dtype!(dtype, E => bands::<E>(gguf, tensor, change, |rows| put(bytemuck::cast_slice(&rows))))
    })
}

/// Writes all tensors as a GGUF, matrices in `dtype`, as [`write_safetensors`] does.
///
/// # Errors
/// Fails as [`write_safetensors`] does.
pub(super) fn write_gguf(
    gguf: &mut Gguf,
    tensors: &LlamaTensors,
    dtype: Dtype,
    change: ChangeRows,
    to: &mut dyn Write,
    progress: Progress,
) -> Result<()> {
    // The factors of scaled rotations, a vector, are the only tensor without Hugging Face's name.
    let by_source: HashMap<_, _> =
        tensors.all().iter().map(|tensor| (tensor.source.as_str(), tensor)).collect();
    let mut header = GgufHeader::default();
    for (key, entry) in gguf.entries()? {
        if ![FILE_TYPE, ALIGNMENT_KEY].contains(&key.as_str()) && !key.starts_with(QUANTISATION) {
            header.copied(&key, &entry)?;
        }
    }
    let (block_type, file_type) = types(dtype);
    header.u32(FILE_TYPE, file_type)?;
    let mut sources = Vec::new();
    for (source, tensor) in gguf.tensors() {
        let block_type = if tensor.shape.len() > 1 { block_type } else { BlockType::F32 };
        header.tensor(source, block_type, &tensor.shape)?;
        sources.push((source.clone(), block_type));
    }
    let mut put = |bytes: &[u8]| {
        to.write_all(bytes).map_err(refused)?;
        progress(bytes.len() as u64)
    };
    put(&header.bytes()?)?;
    for (source, block_type) in &sources {
        let mut len = 0;
        let mut put_rows = |bytes: &[u8]| {
            len += bytes.len();
            put(bytes)
        };
        match by_source.get(source.as_str()) {
            None => put_rows(bytemuck::cast_slice(&values(gguf, source)?))?,
            Some(tensor) if *block_type == BlockType::F32 => {
                gguf_bands::<f32>(gguf, tensor, change, &mut put_rows)?;
            }
            Some(tensor) => {
                with_dtype!(dtype, E => gguf_bands::<E>(gguf, tensor, change, &mut put_rows))?;
            }
        }
        put(padding(len))?;
    }
    Ok(())
}

fn refused(e: std::io::Error) -> Error {
    Error::io("the weights cannot be written", e)
}

/// Returns the type of blocks, and llama.cpp's number of a file of them.
const fn types(dtype: Dtype) -> (BlockType, u32) {
    match dtype {
        Dtype::F32 => (BlockType::F32, 0),
        Dtype::F16 => (BlockType::F16, 1),
        Dtype::Bf16 => (BlockType::Bf16, 32),
    }
}

/// Returns all values of a tensor.
fn values(gguf: &mut Gguf, source: &str) -> Result<Vec<f32>> {
    let blocks = gguf.blocks(source)?;
    let mut values = vec![0.0; blocks.rows() * blocks.columns()];
    blocks.dequantise(0..blocks.rows(), &mut values)?;
    Ok(values)
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

/// Gives the tensor's bytes to `put` with the rows in a GGUF's order.
fn gguf_bands<E: Element>(
    gguf: &mut Gguf,
    tensor: &HuggingFaceTensor,
    change: ChangeRows,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let columns = columns(tensor);
    bands::<E>(gguf, tensor, change, |rows| match tensor.heads {
        None => put(bytemuck::cast_slice(&rows)),
        Some(heads) => put(bytemuck::cast_slice(&heads.gguf_rows(&rows, columns))),
    })
}

/// Gives the tensor's rounded values to `put`, some rows at a time, of q and k whole heads.
fn bands<E: Element>(
    gguf: &mut Gguf,
    tensor: &HuggingFaceTensor,
    change: ChangeRows,
    mut put: impl FnMut(Vec<E>) -> Result<()>,
) -> Result<()> {
    let columns = columns(tensor);
    let rows = tensor.shape.iter().product::<usize>() / columns;
    let unit = tensor.heads.map_or(1, |heads| heads.width);
    let band = (BAND / columns / unit).max(1) * unit;
    let mut values = Vec::new();
    for first in (0..rows).step_by(band) {
        let count = band.min(rows - first);
        values.resize(count * columns, 0.0);
        gguf.hugging_face_rows(tensor, first..first + count)?.dequantise(0..count, &mut values)?;
        change(tensor, first, &mut values)?;
        let rounded: Vec<E> = values.iter().map(|v| E::from_f32(*v)).collect();
        if let Some(i) = first_not_finite(&rounded) {
            return Err(Error::data(format!(
                "{}: row {} holds {}, which is not finite in {}",
                tensor.name,
                first + i / columns,
                values[i],
                E::DTYPE
            )));
        }
        put(rounded)?;
    }
    Ok(())
}

fn columns(tensor: &HuggingFaceTensor) -> usize {
    tensor.shape.last().copied().unwrap_or(1)
}
