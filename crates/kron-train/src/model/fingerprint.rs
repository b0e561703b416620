//! Hash of a model's weights.

use std::hash::Hasher;

use candle_core::DType;
use xxhash_rust::xxh3::Xxh3Default;

use super::load::Weights;
use crate::error::Result;

impl Weights {
    /// Returns a hash of the names and values of all tensors, equal for equal weights in the same precision.
    ///
    /// # Errors
    /// candle fails.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut hash = Xxh3Default::new();
        let mut names: Vec<_> = self.tensors.keys().collect();
        names.sort();
        for name in names {
            hash.update(name.as_bytes());
            let values = self.tensors[name].to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            hash.update(bytemuck::cast_slice(&values));
        }
        let mut names: Vec<_> = self.blocks.keys().collect();
        names.sort();
        for name in names {
            hash.update(name.as_bytes());
            hash.update(self.blocks[name].bytes());
        }
        Ok(hash.finish())
    }
}
