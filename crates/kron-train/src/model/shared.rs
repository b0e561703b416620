//! [`SharedBlocks`]: matrices that processes of one host have in memory once.

use std::io::{self, Write};
use std::sync::Arc;

use kron_adapter::gguf::{BlockType, Blocks};
use kron_candle::models::BlocksByName;
use serde::{Deserialize, Serialize};

use super::load::Weights;
use crate::error::{Error, Result};
use crate::sealed::{Sealed, Writer, open};

/// Where the matrices are, for other processes of this host.
#[derive(Deserialize, Serialize)]
pub struct SharedBlocks {
    /// Path of the memory.
    path: String,
    matrices: Vec<Place>,
}

/// Place of a matrix in the memory.
#[derive(Deserialize, Serialize)]
struct Place {
    name: String,
    /// Number of its kind of blocks.
    block_type: u32,
    rows: usize,
    columns: usize,
    /// First byte; the next matrix begins where this one ends.
    start: usize,
    end: usize,
}

impl Weights {
    /// Moves the matrices that stay as their file has them into memory that other processes can open as long as the
    /// second value lives; `None` if the system has no such memory.
    ///
    /// # Errors
    /// The memory cannot hold them.
    pub fn share_blocks(&mut self) -> Result<Option<(SharedBlocks, Sealed)>> {
        let Ok(writer) = Writer::new() else { return Ok(None) };
        let shared = self.move_blocks(writer);
        shared.map(Some).map_err(|e| Error::Rank(format!("the frozen weights cannot be shared: {e}")))
    }

    fn move_blocks(&mut self, mut writer: Writer) -> io::Result<(SharedBlocks, Sealed)> {
        let (mut matrices, mut end) = (Vec::new(), 0);
        // One at a time, so that no more than one is in memory twice.
        let names: Vec<String> = self.blocks.keys().cloned().collect();
        for name in names {
            let Some(blocks) = self.blocks.remove(&name) else { continue };
            writer.write_all(blocks.bytes())?;
            let (start, block_type) = (end, blocks.block_type().id());
            end += blocks.bytes().len();
            matrices.push(Place {
                name,
                block_type,
                rows: blocks.rows(),
                columns: blocks.columns(),
                start,
                end,
            });
        }
        let sealed = writer.seal()?;
        let shared = SharedBlocks { path: sealed.path(), matrices };
        self.blocks = shared.blocks_of(&sealed.bytes)?;
        Ok((shared, sealed))
    }
}

impl SharedBlocks {
    /// Opens the memory, and returns its matrices.
    ///
    /// # Errors
    /// The system does not let this process open it, or it is too short.
    pub fn open(&self) -> io::Result<BlocksByName> {
        self.blocks_of(&open(&self.path)?)
    }

    fn blocks_of(&self, bytes: &bytes::Bytes) -> io::Result<BlocksByName> {
        let blocks = |place: &Place| {
            let block_type = BlockType::from_id(place.block_type)?;
            let within = place.start <= place.end && place.end <= bytes.len();
            let bytes = within.then(|| bytes.slice(place.start..place.end))?;
            let blocks = Blocks::new(block_type, place.rows, place.columns, bytes).ok()?;
            Some((place.name.clone(), Arc::new(blocks)))
        };
        let all: Option<BlocksByName> = self.matrices.iter().map(blocks).collect();
        all.ok_or_else(|| io::Error::other("the memory of the frozen weights holds others"))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::compute::{Compute, Precision};
    use crate::model::Files;

    /// Returns true if some bytes are in a map of sealed memory.
    fn is_shared(bytes: &[u8]) -> bool {
        let at = bytes.as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/maps").expect("the process's maps");
        maps.lines().filter(|line| line.contains("memfd:frozen weights")).any(|line| {
            let (start, end) =
                line.split_whitespace().next().and_then(|r| r.split_once('-')).expect("a range");
            let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).expect("an address"));
            (start..end).contains(&at)
        })
    }

    /// Shares the matrices of a model in bf16, and those that are rounded to bf16, and reads the model without them.
    #[test]
    fn what_is_given_is_not_read_and_is_in_memory_once() -> Result<()> {
        for (model, precision) in [("llama3", Precision::F32), ("llama", Precision::Bf16)] {
            let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(model);
            let files = Files { tokenizer: model.clone(), model };
            let compute = Compute { precision, ..Compute::default() };
            let mut weights = Weights::read_for(&files, compute)?;
            let (want, count) = (weights.fingerprint()?, weights.blocks.len());
            assert!(count > 0 && !weights.blocks.values().any(|blocks| is_shared(blocks.bytes())));
            let (shared, memory) = weights.share_blocks()?.expect("Linux has such memory");
            let shared = serde_json::to_string(&shared).expect("a text");
            let shared: SharedBlocks = serde_json::from_str(&shared).expect("the same");
            let other = Weights::read_without(&files, compute, shared.open().expect("this process may"))?;
            drop(memory);
            for weights in [&weights, &other] {
                assert_eq!((weights.fingerprint()?, weights.blocks.len()), (want, count));
                assert!(weights.blocks.values().all(|blocks| is_shared(blocks.bytes())));
            }
        }
        Ok(())
    }

    #[test]
    fn places_beyond_the_memory_are_refused() {
        let bytes = bytes::Bytes::from(vec![0; 18]);
        let place = |block_type, rows, columns, start, end| {
            let place = Place { name: "w".into(), block_type, rows, columns, start, end };
            SharedBlocks { path: String::new(), matrices: vec![place] }.blocks_of(&bytes)
        };
        assert!(place(2, 1, 32, 0, 18).is_ok());
        for (block_type, rows, columns, start, end) in
            [(99, 1, 32, 0, 18), (2, 2, 32, 0, 18), (2, 1, 33, 0, 18), (2, 1, 32, 1, 19), (2, 1, 32, 18, 0)]
        {
            assert!(place(block_type, rows, columns, start, end).is_err(), "{block_type}, {start}");
        }
    }
}
