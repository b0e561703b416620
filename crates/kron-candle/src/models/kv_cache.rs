//! [`KvCache`]: keys and values of a text's tokens, so that a further token is one row of work.

use candle_core::{Result, Tensor};

use super::rope::{Rope, Rotation};

/// Smallest number of tokens that room is made for.
const LEAST: usize = 64;

/// Keys and values of one text in every block of a decoder.
///
/// A token takes 2 · blocks · key heads · head width values of the model's precision. The room doubles when it is
/// full: a configuration may claim any number of positions.
#[derive(Debug, Default)]
pub struct KvCache {
    len: usize,
    blocks: Vec<BlockCache>,
    rotation: Option<(usize, Rotation)>,
}

/// Keys before their rotation and values of one block, each 1 × room × (key heads·width).
#[derive(Clone, Debug, Default)]
pub(super) struct BlockCache([Option<Tensor>; 2]);

impl KvCache {
    /// Returns the number of tokens.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns `true` before the first token.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the memory of the keys and values in bytes, with the room for further tokens.
    pub fn bytes(&self) -> usize {
        let tensors = self.blocks.iter().flat_map(|block| &block.0).flatten();
        tensors.map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
    }

    /// Returns the cache of each of `count` blocks.
    pub(super) fn blocks(&mut self, count: usize) -> &mut [BlockCache] {
        self.blocks.resize_with(count, BlockCache::default);
        &mut self.blocks
    }

    /// Returns tables of at least `len` positions, for values like `x`.
    pub(super) fn rotation(&mut self, rope: &Rope, len: usize, x: &Tensor) -> Result<Rotation> {
        match &self.rotation {
            Some((room, rotation)) if *room >= len => Ok(rotation.clone()),
            _ => {
                let rotation = rope.rotation(room(len), x)?;
                Ok(self.rotation.insert((room(len), rotation)).1.clone())
            }
        }
    }

    /// Counts the tokens whose keys and values all blocks have.
    pub(super) const fn set_len(&mut self, len: usize) {
        self.len = len;
    }
}

impl BlockCache {
    /// Adds keys and values, 1 × new × width, after the first `past` ones; returns all of them.
    pub fn append(&mut self, past: usize, [k, v]: [Tensor; 2]) -> Result<[Tensor; 2]> {
        let [keys, values] = &mut self.0;
        Ok([append(keys, past, &k)?, append(values, past, &v)?])
    }
}

fn append(held: &mut Option<Tensor>, past: usize, new: &Tensor) -> Result<Tensor> {
    let (n, len, width) = new.dims3()?;
    let len = past + len;
    let all = match held.take() {
        Some(all) if all.dim(1)? >= len => all,
        full => {
            let all = Tensor::zeros((n, room(len), width), new.dtype(), new.device())?;
            if let Some(full) = full {
                all.slice_set(&full, 1, 0)?;
            }
            all
        }
    };
    all.slice_set(&new.contiguous()?, 1, past)?;
    held.insert(all).narrow(1, 0, len)
}

/// Returns the number of tokens to make room for.
fn room(len: usize) -> usize {
    len.next_power_of_two().max(LEAST)
}
