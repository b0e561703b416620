//! A file's header: metadata, and the place of every tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use indexmap::IndexMap;

use super::block_type::BlockType;
use super::blocks::{Blocks, row_bytes};
use super::reader::Reader;
use super::value::Value;
use crate::io::Input;
use crate::text::shown;
use crate::{Error, Result};

/// Least bytes of a metadata entry and of a tensor's entry.
const LEAST_ENTRY: u64 = 8 + 4 + 1;
const LEAST_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;
/// Alignment of the data where a file names none, and the largest one.
const ALIGNMENT: usize = 32;
const MAX_ALIGNMENT: usize = 1 << 20;
/// Most dimensions of a tensor.
const MAX_DIMS: u32 = 4;

/// An open file whose header is read and checked.
#[derive(Debug)]
pub struct Gguf {
    path: String,
    file: File,
    metadata: BTreeMap<String, Value>,
    tensors: IndexMap<String, GgufTensor>,
}

/// A tensor as the header has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Kind of the blocks.
    pub block_type: BlockType,
    /// Dimensions, that of the rows last: rows × columns for a matrix.
    pub shape: Vec<usize>,
    /// Number of bytes.
    pub len: u64,
    /// Offset of the first byte in the file.
    offset: u64,
}

impl GgufTensor {
    /// Returns the tensor as a matrix: its last dimension, and the product of the others.
    fn matrix(&self) -> (usize, usize) {
        let (columns, rows) = self.shape.split_last().unwrap_or((&1, &[]));
        (rows.iter().product(), *columns)
    }
}

impl Gguf {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// Fails if the path names no regular file, if the file is not a GGUF of version 2 or 3, if its
    /// header is damaged, and if a tensor has an unknown type, no values, or a place that
    /// is not its own.
    pub fn open(path: &Path) -> Result<Self> {
        let input = Input::open(path)?;
        let (path, len) = (input.path().to_string(), input.len());
        let mut file = input.into_file();
        let (metadata, tensors) = read(BufReader::new(&mut file), len).map_err(|e| e.about(&path))?;
        Ok(Self { path, file, metadata, tensors })
    }

    /// Path of the file, as messages give it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// All metadata by key.
    pub const fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// Returns a value of the metadata.
    ///
    /// # Errors
    /// Fails if the file lacks the key.
    pub fn value(&self, key: &str) -> Result<&Value> {
        let value = self.metadata.get(key);
        value.ok_or_else(|| Error::data(format!("{} has no metadata {key}", self.path)))
    }

    /// Tensors in the order of the file.
    pub const fn tensors(&self) -> &IndexMap<String, GgufTensor> {
        &self.tensors
    }

    /// Reads the blocks of a tensor; one of more than two dimensions is a matrix of all its rows.
    ///
    /// # Errors
    /// Fails if the file lacks the tensor, if memory cannot hold it, and if the system refuses.
    pub fn blocks(&mut self, name: &str) -> Result<Blocks> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(Error::data(format!("{} has no tensor {}", self.path, shown(name))));
        };
        let (rows, columns) = tensor.matrix();
        let mut bytes = Vec::new();
        if !usize::try_from(tensor.len).is_ok_and(|len| bytes.try_reserve_exact(len).is_ok()) {
            let Self { path, .. } = self;
            return Err(Error::data(format!("cannot allocate {} bytes for {path}", tensor.len)));
        }
        let refused = |e| Error::io(format!("{} cannot be read", self.path), e);
        self.file.seek(SeekFrom::Start(tensor.offset)).map_err(refused)?;
        Read::take(&mut self.file, tensor.len).read_to_end(&mut bytes).map_err(refused)?;
        if bytes.len() as u64 != tensor.len {
            return Err(Error::data(format!("{} became shorter while it was read", self.path)));
        }
        Blocks::new(tensor.block_type, rows, columns, bytes).map_err(|e| e.about(&self.path))
    }
}

type Header = (BTreeMap<String, Value>, IndexMap<String, GgufTensor>);

fn read(from: impl Read, len: u64) -> Result<Header> {
    let mut from = Reader::new(from, len);
    let magic: [u8; 4] = from.array()?;
    if magic != *b"GGUF" {
        return Err(Error::data(format!(
            "is not a GGUF file: it begins with {}",
            shown(&magic.escape_ascii().to_string())
        )));
    }
    let version = from.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(Error::data(format!(
            "is GGUF of version {version}, but 2 and 3 in little-endian order are known"
        )));
    }
    let (tensors, entries) = (from.u64()?, from.u64()?);
    from.check("metadata entries", entries, LEAST_ENTRY)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = from.text()?;
        let value = from.value().map_err(|e| e.about(format!("metadata {}", shown(&key))))?;
        let name = shown(&key);
        if metadata.insert(key, value).is_some() {
            return Err(Error::data(format!("has metadata {name} twice")));
        }
    }
    let alignment = alignment(&metadata)?;
    from.check("tensors", tensors, LEAST_TENSOR)?;
    let mut all = IndexMap::new();
    for _ in 0..tensors {
        let name = from.text()?;
        let tensor = tensor(&mut from).map_err(|e| e.about(format!("tensor {}", shown(&name))))?;
        let shown = shown(&name);
        if all.insert(name, tensor).is_some() {
            return Err(Error::data(format!("has tensor {shown} twice")));
        }
    }
    place(&mut all, from.at().next_multiple_of(alignment), alignment, len)?;
    Ok((metadata, all))
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64> {
    let alignment = metadata.get("general.alignment").map_or(Some(ALIGNMENT), Value::as_usize);
    match alignment {
        Some(n) if n.is_power_of_two() && n <= MAX_ALIGNMENT => Ok(n as u64),
        _ => Err(Error::data(format!("general.alignment is not a power of two up to {MAX_ALIGNMENT}"))),
    }
}

/// Reads the entry of a tensor; its offset counts from the start of the data.
fn tensor(from: &mut Reader<impl Read>) -> Result<GgufTensor> {
    let dims = from.u32()?;
    if !(1..=MAX_DIMS).contains(&dims) {
        return Err(Error::data(format!("has {dims} dimensions, but a tensor has 1 to {MAX_DIMS}")));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        let dim = from.u64()?;
        // Zero rows have no bytes, whatever number of columns they claim.
        let usable = usize::try_from(dim).ok().filter(|dim| *dim > 0);
        shape.push(usable.ok_or_else(|| Error::data(format!("has a dimension of {dim}")))?);
    }
    shape.reverse();
    let id = from.u32()?;
    let Some(block_type) = BlockType::from_id(id) else {
        let known: Vec<&str> = BlockType::ALL.map(BlockType::name).into();
        return Err(Error::data(format!("is of type {id}, but {} are known", known.join(", "))));
    };
    let offset = from.u64()?;
    let (columns, outer) = shape.split_last().unwrap_or((&1, &[]));
    let rows = outer.iter().try_fold(1usize, |rows, dim| rows.checked_mul(*dim));
    let len = row_bytes(block_type, *columns)?;
    let len = rows.and_then(|rows| rows.checked_mul(len));
    let len = len.ok_or_else(|| Error::data(format!("of shape {shape:?} exceeds the address space")))?;
    Ok(GgufTensor { block_type, shape, len: len as u64, offset })
}

/// Checks that each tensor has bytes of its own in the file, and makes the offsets count from its start.
fn place(tensors: &mut IndexMap<String, GgufTensor>, data: u64, alignment: u64, len: u64) -> Result<()> {
    for (name, tensor) in &mut *tensors {
        let (begin, name) = (tensor.offset, shown(name));
        if !begin.is_multiple_of(alignment) {
            return Err(Error::data(format!(
                "tensor {name} begins at {begin}, which is not a multiple of {alignment}"
            )));
        }
        let begin = data.checked_add(begin);
        let end = begin.and_then(|begin| begin.checked_add(tensor.len));
        match (begin, end) {
            (Some(begin), Some(end)) if end <= len => tensor.offset = begin,
            _ => {
                return Err(Error::data(format!(
                    "is damaged or cut short: tensor {name} takes {} bytes from {} of {len}",
                    tensor.len,
                    u128::from(data) + u128::from(tensor.offset)
                )));
            }
        }
    }
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| tensor.offset);
    for pair in order.windows(2) {
        let ((first, a), (second, b)) = (pair[0], pair[1]);
        if a.offset + a.len > b.offset {
            return Err(Error::data(format!("tensors {} and {} overlap", shown(first), shown(second))));
        }
    }
    Ok(())
}
