//! Encodes the header of a file, version 3; the data of its tensors follow in order, each padded.

use indexmap::{IndexMap, IndexSet};

use super::block_type::BlockType;
use super::blocks::row_bytes;
use super::header::{ALIGNMENT, MAGIC, MAX_DIMS};
use super::reader::MAX_HEADER;
use crate::text::shown;
use crate::{Error, Result};

const VERSION: u32 = 3;
/// Numbers of metadata's types.
const U32: u32 = 4;
const F32: u32 = 6;
const TEXT: u32 = 8;
/// Longest key by the specification, and longest tensor name that ggml holds, in bytes.
const MAX_KEY: usize = (1 << 16) - 1;
const MAX_NAME: usize = 63;

/// Header of a file to write.
#[derive(Clone, Debug, Default)]
pub(super) struct GgufHeader {
    keys: IndexSet<String>,
    metadata: Vec<u8>,
    tensors: IndexMap<String, Entry>,
    /// Length of the tensors so far.
    len: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    block_type: BlockType,
    shape: Vec<usize>,
    offset: u64,
}

impl GgufHeader {
    /// Adds a text.
    ///
    /// # Errors
    /// Fails on a key that is empty, too long or taken.
    pub fn text(&mut self, key: &str, value: &str) -> Result<()> {
        self.entry(key, TEXT, &encoded(value))
    }

    /// Adds an unsigned integer of 32 bits.
    ///
    /// # Errors
    /// Fails as [`GgufHeader::text`] does.
    pub fn u32(&mut self, key: &str, value: u32) -> Result<()> {
        self.entry(key, U32, &value.to_le_bytes())
    }

    /// Adds a float32.
    ///
    /// # Errors
    /// Fails as [`GgufHeader::text`] does.
    pub fn f32(&mut self, key: &str, value: f32) -> Result<()> {
        self.entry(key, F32, &value.to_le_bytes())
    }

    fn entry(&mut self, key: &str, kind: u32, value: &[u8]) -> Result<()> {
        self.copied(key, &[&encoded(key)[..], &kind.to_le_bytes(), value].concat())
    }

    /// Adds an entry of another file: key, type and value in bytes.
    ///
    /// # Errors
    /// Fails as [`GgufHeader::text`] does.
    pub fn copied(&mut self, key: &str, entry: &[u8]) -> Result<()> {
        if !(1..=MAX_KEY).contains(&key.len()) || !self.keys.insert(key.into()) {
            return Err(Error::data(format!(
                "the metadata key {} cannot be written: it has 1 to {MAX_KEY} bytes and occurs once",
                shown(key)
            )));
        }
        self.metadata.extend(entry);
        Ok(())
    }

    /// Adds a tensor, columns last in its shape.
    ///
    /// # Errors
    /// Fails on a name that is empty, too long or taken, on dimensions that a reader refuses, and if all
    /// tensors together exceed 2⁶⁴ bytes.
    pub fn tensor(&mut self, name: &str, block_type: BlockType, shape: &[usize]) -> Result<()> {
        let refused = |why: String| Error::data(format!("tensor {} cannot be written: {why}", shown(name)));
        if !(1..=MAX_NAME).contains(&name.len()) || self.tensors.contains_key(name) {
            return Err(refused(format!("its name has 1 to {MAX_NAME} bytes and occurs once")));
        }
        let (columns, rows) = match shape {
            [rows @ .., columns] if shape.len() <= MAX_DIMS as usize && !shape.contains(&0) => {
                (*columns, rows)
            }
            _ => return Err(refused(format!("its shape is {shape:?}"))),
        };
        let len = row_bytes(block_type, columns).map_err(|e| e.about(shown(name)))? as u64;
        let len = rows.iter().try_fold(len, |len, dim| len.checked_mul(*dim as u64));
        let end = len.and_then(|len| self.len.checked_add(len)?.checked_next_multiple_of(ALIGNMENT as u64));
        let end = end.ok_or_else(|| refused(format!("its shape is {shape:?}")))?;
        let entry = Entry { block_type, shape: shape.into(), offset: self.len };
        self.len = end;
        self.tensors.insert(name.into(), entry);
        Ok(())
    }

    /// Encodes the header up to the first byte of the data.
    ///
    /// # Errors
    /// Fails if it is longer than a reader takes.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        bytes.extend(&self.metadata);
        for (name, Entry { block_type, shape, offset }) in &self.tensors {
            bytes.extend(encoded(name));
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|dim| bytes.extend((*dim as u64).to_le_bytes()));
            bytes.extend(block_type.id().to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.extend(padding(bytes.len()));
        match bytes.len() as u64 <= MAX_HEADER {
            true => Ok(bytes),
            false => Err(Error::data(format!(
                "the header takes {} bytes, but a header has at most {MAX_HEADER}",
                bytes.len()
            ))),
        }
    }
}

/// Returns the zeros that follow this many bytes.
pub(super) fn padding(len: usize) -> &'static [u8] {
    const ZEROS: &[u8] = &[0; ALIGNMENT];
    &ZEROS[..len.next_multiple_of(ALIGNMENT) - len]
}

/// Encodes a text with its length.
fn encoded(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_shapes_that_no_reader_takes_are_refused() {
        let mut header = GgufHeader::default();
        header.u32("a", 1).expect("a key");
        for key in ["", "a", &"x".repeat(MAX_KEY + 1)] {
            assert!(header.f32(key, 1.0).is_err());
        }
        header.tensor("w", BlockType::F32, &[2, 3]).expect("a tensor");
        for (name, block_type, shape) in [
            ("", BlockType::F32, &[1][..]),
            ("w", BlockType::F32, &[1]),
            (&"x".repeat(MAX_NAME + 1), BlockType::F32, &[1]),
            ("v", BlockType::F32, &[]),
            ("v", BlockType::F32, &[2, 0]),
            ("v", BlockType::F32, &[1, 1, 1, 1, 1]),
            ("v", BlockType::Q8_0, &[2, 31]),
            ("v", BlockType::F32, &[usize::MAX, 2]),
            ("v", BlockType::F32, &[1 << 62, 1]),
        ] {
            assert!(header.tensor(name, block_type, shape).is_err(), "{name} {shape:?}");
        }
        // Six values take 24 bytes, after which the next tensor is aligned.
        header.tensor(&"x".repeat(MAX_NAME), BlockType::F16, &[1]).expect("another tensor");
        assert_eq!(header.tensors[1].offset, 32);
        assert!(header.bytes().expect("a header").len().is_multiple_of(ALIGNMENT));
        header.text("b", &"x".repeat(MAX_HEADER as usize)).expect("a long text");
        assert!(header.bytes().expect_err("too long").message().contains("a header has at most"));
    }
}
