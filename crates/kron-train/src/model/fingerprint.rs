//! Hash of a model's weights.

use std::hash::Hasher;

use candle_core::DType;
use xxhash_rust::xxh3::Xxh3Default;

use super::load::Weights;
use crate::error::Result;

impl Weights {
    /// Returns a hash of the configuration and of the names, types, shapes and values of all tensors.
    ///
    /// # Errors
    /// candle fails.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut hash = Xxh3Default::new();
        hash.update(format!("{:?} {:?}", self.config, self.operands).as_bytes());
        let mut names: Vec<_> = self.tensors.keys().collect();
        names.sort();
        for name in names {
            let tensor = &self.tensors[name];
            hash.update(format!("{name} {:?} {:?}", tensor.dtype(), tensor.dims()).as_bytes());
            let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            hash.update(bytemuck::cast_slice(&values));
        }
        let mut names: Vec<_> = self.blocks.keys().collect();
        names.sort();
        for name in names {
            let blocks = &self.blocks[name];
            let (rows, columns) = (blocks.rows(), blocks.columns());
            hash.update(format!("{name} {:?} {rows} {columns}", blocks.block_type()).as_bytes());
            hash.update(blocks.bytes());
        }
        Ok(hash.finish())
    }
}
