//! One shard: its bytes pass through, the adapted tensors are folded on the way.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use kron_core::Existing;
use kron_core::io::write_atomic;
use xxhash_rust::xxh3::Xxh3;

use super::base::Shard;
use super::fold::Fold;
use super::{Watch, data};
use crate::files::Input;
use crate::{Error, Result};

/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;

/// Writes the merged shard to `out`, whole or not at all; the hash of its bytes.
///
/// # Errors
/// A shard that cannot be read or has changed, a sum that its dtype cannot
/// hold, a signal, and what the system refuses.
pub fn write(
    shard: &Shard,
    folds: &HashMap<usize, &Fold>,
    out: &Path,
    existing: Existing,
    watch: &Watch,
) -> Result<u128> {
    let mut hash = Xxh3::new();
    // The writer below can only fail with an error of the system; ours is kept beside it.
    let mut failed = None;
    let written = write_atomic(out, existing, |to| {
        let mut to = Sink { to, hash: &mut hash, refused: None, watch };
        pass(shard, folds, &mut to).map_err(|error| {
            let refused = to.refused.take();
            refused.unwrap_or_else(|| {
                failed = Some(error);
                std::io::Error::other("the merge failed")
            })
        })
    });
    match failed {
        Some(error) => Err(error),
        None => written.map_err(data).map(|()| hash.digest128()),
    }
}

/// The hash of a file's bytes.
///
/// # Errors
/// What the system refuses.
pub fn hash(path: &Path) -> Result<u128> {
    let (mut hash, mut buffer) = (Xxh3::new(), vec![0; CHUNK]);
    let input = Input::open(path)?;
    let mut file = input.into_file();
    loop {
        match file.read(&mut buffer).map_err(|e| unreadable(path, &e))? {
            0 => return Ok(hash.digest128()),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn pass(shard: &Shard, folds: &HashMap<usize, &Fold>, to: &mut Sink) -> Result<()> {
    let mut input = Input::open(&shard.path)?;
    let mut header = Vec::new();
    let len = input.len();
    input.append(shard.header.len() as u64, &mut header)?;
    if header != shard.header || len != shard.len {
        return Err(Error::data(format!("{} changed while it was merged", shard.path.display())));
    }
    to.put(&header)?;
    let mut from: File = input.into_file();
    let mut buffer = vec![0; CHUNK];
    for (i, slot) in shard.tensors.iter().enumerate() {
        let mut read = |bytes: &mut [u8]| from.read_exact(bytes).map_err(|e| unreadable(&shard.path, &e));
        match folds.get(&i) {
            Some(fold) => fold.run(&slot.name, &mut read, &mut |bytes| to.put(bytes))?,
            None => {
                let mut left = slot.len;
                while left > 0 {
                    let n = left.min(CHUNK as u64) as usize;
                    read(&mut buffer[..n])?;
                    to.put(&buffer[..n])?;
                    left -= n as u64;
                }
            }
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::data(format!("{} cannot be read: {error}", path.display()))
}

/// Where the bytes go, hashed and counted.
struct Sink<'a> {
    to: &'a mut dyn Write,
    hash: &'a mut Xxh3,
    refused: Option<std::io::Error>,
    watch: &'a Watch,
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        if let Err(e) = self.to.write_all(bytes) {
            self.refused = Some(e);
            return Err(Error::data("the output cannot be written"));
        }
        self.watch.passed(bytes.len())
    }
}
