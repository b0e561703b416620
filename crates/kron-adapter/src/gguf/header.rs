//! A file's header: metadata, and the place of every tensor.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
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
/// First bytes of a file.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// Key of the alignment of the data.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";
/// Alignment of the data where a file names none, and the largest one.
pub(super) const ALIGNMENT: usize = 32;
const MAX_ALIGNMENT: usize = 1 << 20;
/// Most dimensions of a tensor.
pub(super) const MAX_DIMS: u32 = 4;

/// An open file whose header is read and checked.
#[derive(Debug)]
pub struct Gguf {
    path: String,
    file: File,
    len: u64,
    header: Header,
}

/// Parsed header of a file.
#[derive(Debug)]
struct Header {
    metadata: BTreeMap<String, Value>,
    /// Bytes of each metadata entry, in the order of the file.
    entries: IndexMap<String, Range<u64>>,
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
        let header = read(BufReader::new(&mut file), len).map_err(|e| e.about(&path))?;
        Ok(Self { path, file, len, header })
    }

    /// Path of the file, as messages give it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Length of the file in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a size, not a collection")]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// All metadata by key.
    pub const fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.header.metadata
    }

    /// Returns a value of the metadata.
    ///
    /// # Errors
    /// Fails if the file lacks the key.
    pub fn value(&self, key: &str) -> Result<&Value> {
        let value = self.header.metadata.get(key);
        value.ok_or_else(|| Error::data(format!("{} has no metadata {key}", self.path)))
    }

    /// Tensors in the order of the file.
    pub const fn tensors(&self) -> &IndexMap<String, GgufTensor> {
        &self.header.tensors
    }

    /// Reads the blocks of a tensor; one of more than two dimensions is a matrix of all its rows.
    ///
    /// # Errors
    /// Fails if the file lacks the tensor, if memory cannot hold it, and if the system refuses.
    pub fn blocks(&mut self, name: &str) -> Result<Blocks> {
        let (rows, _) = self.tensor(name)?.matrix();
        self.rows(name, 0..rows)
    }

    /// Reads the blocks of some rows of a tensor.
    ///
    /// # Errors
    /// Fails as [`Gguf::blocks`] does, and if the rows exceed the tensor.
    pub fn rows(&mut self, name: &str, rows: Range<usize>) -> Result<Blocks> {
        let tensor = self.tensor(name)?;
        let ((all, columns), block_type) = (tensor.matrix(), tensor.block_type);
        if rows.start > rows.end || rows.end > all {
            return Err(Error::usage(format!("rows {rows:?} are wanted of a tensor of {all} rows")));
        }
        let row = tensor.len / all as u64;
        let bytes = self.read(tensor.offset + rows.start as u64 * row, rows.len() as u64 * row)?;
        Blocks::new(block_type, rows.len(), columns, bytes).map_err(|e| e.about(&self.path))
    }

    /// Reads the metadata entries again, as the file has them: key, and key, type and value in bytes.
    ///
    /// # Errors
    /// Fails if the file has changed, and if the system refuses.
    pub(super) fn entries(&mut self) -> Result<Vec<(String, Vec<u8>)>> {
        let end = self.header.entries.values().last().map_or(0, |place| place.end);
        let bytes = self.read(0, end)?;
        let entries = self.header.entries.iter().map(|(key, place)| {
            // A place was a position in a header, whose length fits.
            let entry = &bytes[place.start as usize..place.end as usize];
            let same = entry.get(8..).is_some_and(|entry| entry.starts_with(key.as_bytes()));
            same.then(|| (key.clone(), entry.to_vec()))
        });
        let entries = entries.collect::<Option<_>>();
        entries.ok_or_else(|| Error::data(format!("{} changed while it was read", self.path)))
    }

    fn tensor(&self, name: &str) -> Result<&GgufTensor> {
        let tensor = self.header.tensors.get(name);
        tensor.ok_or_else(|| Error::data(format!("{} has no tensor {}", self.path, shown(name))))
    }

    fn read(&mut self, begin: u64, len: u64) -> Result<Vec<u8>> {
        let Self { path, file, .. } = self;
        let mut bytes = Vec::new();
        if !usize::try_from(len).is_ok_and(|len| bytes.try_reserve_exact(len).is_ok()) {
            return Err(Error::data(format!("cannot allocate {len} bytes for {path}")));
        }
        let refused = |e| Error::io(format!("{path} cannot be read"), e);
        file.seek(SeekFrom::Start(begin)).map_err(refused)?;
        Read::take(file, len).read_to_end(&mut bytes).map_err(refused)?;
        if bytes.len() as u64 != len {
            return Err(Error::data(format!("{path} became shorter while it was read")));
        }
        Ok(bytes)
    }
}

/// Returns true if a regular file begins as a GGUF does; false if it cannot be read.
pub fn is_gguf(path: &Path) -> bool {
    let mut magic = Vec::new();
    Input::open(path).is_ok_and(|mut input| input.append(MAGIC.len() as u64, &mut magic).is_ok())
        && magic == MAGIC
}

fn read(from: impl Read, len: u64) -> Result<Header> {
    let mut from = Reader::new(from, len);
    let magic: [u8; 4] = from.array()?;
    if magic != MAGIC {
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
    let (mut metadata, mut places) = (BTreeMap::new(), IndexMap::new());
    for _ in 0..entries {
        let begin = from.at();
        let key = from.text()?;
        let value = from.value().map_err(|e| e.about(format!("metadata {}", shown(&key))))?;
        let name = shown(&key);
        places.insert(key.clone(), begin..from.at());
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
    Ok(Header { metadata, entries: places, tensors: all })
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64> {
    let alignment = metadata.get(ALIGNMENT_KEY).map_or(Some(ALIGNMENT), Value::as_usize);
    match alignment {
        Some(n) if n.is_power_of_two() && n <= MAX_ALIGNMENT => Ok(n as u64),
        _ => Err(Error::data(format!("{ALIGNMENT_KEY} is not a power of two up to {MAX_ALIGNMENT}"))),
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
