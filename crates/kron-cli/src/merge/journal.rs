//! Journal of an unfinished merge: the list of its finished shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kron_adapter::extras::Norm;
use kron_adapter::io::write_atomic;
use kron_adapter::{IfExists, io};
use kron_core::{Inner, Outer};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::inputs::{Input, Inputs};
use super::shard;
use crate::model::Base;
use crate::{Error, Result};

/// Name of the journal in the folder. A merge removes it last.
pub const JOURNAL: &str = ".kron-merge.json";
/// Largest journal that is read, in bytes.
const MAX_BYTES: u64 = 1 << 26;

/// The journal of one merge.
pub struct Journal {
    path: PathBuf,
    state: State,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Hash of the model and the adapter.
    job: String,
    /// Finished shards by their final names.
    shards: BTreeMap<String, FinishedShard>,
    /// Names of files of another model that are removed last.
    #[serde(default)]
    stale: Vec<String>,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct FinishedShard {
    size: u64,
    hash: String,
}

impl Journal {
    /// Begins a journal in the folder.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn begin(folder: &Path, base: &Base, inputs: &Inputs, stale: Vec<String>) -> Result<Self> {
        let journal = Self {
            path: folder.join(JOURNAL),
            state: State { job: job(base, inputs)?, shards: BTreeMap::new(), stale },
        };
        journal.save()?;
        Ok(journal)
    }

    /// Reads the journal of the folder.
    ///
    /// # Errors
    /// The journal is damaged or belongs to another merge.
    pub fn resume(folder: &Path, base: &Base, inputs: &Inputs) -> Result<Self> {
        let path = folder.join(JOURNAL);
        let state: State = serde_json::from_slice(&io::read(&path, MAX_BYTES)?)
            .map_err(|e| Error::data(format!("{} is not a journal of a merge: {e}", path.display())))?;
        if state.job != job(base, inputs)? {
            return Err(Error::usage(format!(
                "{} is of another merge: the model or the adapter is not the same; --force begins anew",
                path.display()
            )));
        }
        // A forged journal must not remove files outside the folder.
        if let Some(name) = state.stale.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref()))
        {
            return Err(Error::data(format!(
                "{}: {name:?} to be removed is not a name in the folder",
                path.display()
            )));
        }
        Ok(Self { path, state })
    }

    /// Names of files to remove when the model is whole; after a kill, some may be gone already.
    pub fn stale(&self) -> &[String] {
        &self.state.stale
    }

    /// Returns true if the shard under this name is finished and unchanged since.
    ///
    /// # Errors
    /// The shard exists and cannot be read.
    pub fn has(&self, folder: &Path, name: &str) -> Result<bool> {
        let (path, Some(finished)) = (folder.join(name), self.state.shards.get(name)) else {
            return Ok(false);
        };
        let size = path.metadata().map(|meta| meta.len()).ok();
        Ok(size == Some(finished.size) && hex(shard::hash(&path)?) == finished.hash)
    }

    /// Adds a shard that has its final name.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn add(&mut self, name: &str, size: u64, hash: u128) -> Result<()> {
        self.state.shards.insert(name.into(), FinishedShard { size, hash: hex(hash) });
        self.save()
    }

    /// Removes the journal of a complete merge.
    ///
    /// # Errors
    /// The journal cannot be removed.
    pub fn end(self) -> Result<()> {
        let refused = |e| Error::data(format!("{} cannot be removed: {e}", self.path.display()));
        std::fs::remove_file(&self.path).map_err(refused)
    }

    fn save(&self) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.state).map_err(|e| Error::data(e.to_string()))?;
        write_atomic(&self.path, IfExists::Replace, |out| out.write_all(&bytes))
    }
}

/// Hashes the shards' headers, lengths and modification times, and the whole adapters.
/// The hash detects mistakes; it is not meant to withstand an attacker.
fn job(base: &Base, inputs: &Inputs) -> Result<String> {
    let mut hash = Xxh3::new();
    for shard in &base.shards {
        let meta = shard.path.metadata().and_then(|meta| meta.modified());
        let time = meta.map_err(|e| Error::data(format!("{} cannot be read: {e}", shard.path.display())))?;
        let time = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
        hash.update(shard.name.as_bytes());
        hash.update(&shard.len.to_le_bytes());
        hash.update(&time.to_le_bytes());
        hash.update(&shard.header);
    }
    inputs.all.iter().for_each(|input| hash_input(input, &mut hash));
    Ok(hex(hash.digest128()))
}

fn hash_input(Input { adapter, extras, weight, .. }: &Input, hash: &mut Xxh3) {
    // A job of one adapter with the weight 1 and without extras is that of earlier programs.
    if *weight != 1.0 {
        hash.update(&weight.to_le_bytes());
    }
    for layer in adapter.layers() {
        let s = layer.shape();
        let inner = if let Inner::LowRank(r) = s.inner() { r } else { 0 };
        let outer = usize::from(s.outer() == Outer::Trained);
        hash.update(layer.module().as_bytes());
        for n in [s.d_out(), s.d_in(), s.a_out(), s.a_in(), inner, outer] {
            hash.update(&n.to_le_bytes());
        }
        hash.update(&layer.scaling().scale().get().to_le_bytes());
        hash.update(bytemuck::cast_slice(layer.theta().as_slice()));
    }
    for tensor in adapter.trained_tensors() {
        hash.update(format!("{} {:?}", tensor.name(), tensor.rows()).as_bytes());
        hash.update(bytemuck::cast_slice(tensor.values()));
    }
    for (module, magnitude) in &extras.magnitudes {
        hash.update(module.as_bytes());
        hash.update(&[u8::from(magnitude.norm() == Norm::OfInputs)]);
        hash.update(bytemuck::cast_slice(magnitude.values()));
    }
    for stack in &extras.experts {
        hash.update(stack.source().as_bytes());
        stack.parameters().iter().for_each(|(name, scaling)| {
            hash.update(format!("{} {name} {scaling}", stack.module()).as_bytes());
        });
        stack.values().iter().for_each(|values| hash.update(bytemuck::cast_slice(values)));
    }
    for change in &extras.changes {
        hash.update(format!("{} {:?}", change.tensor(), change.kind()).as_bytes());
        hash.update(bytemuck::cast_slice(change.values()));
    }
}

fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}
