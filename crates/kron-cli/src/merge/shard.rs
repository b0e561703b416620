//! One shard: its bytes pass through, the adapted tensors are folded on the way.
//!
//! ```text
//! copy ──▶ fold ──▶ hash and write        a thread each, a few bands in flight
//!   ▲─────── empty bands ─────┘
//! ```

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use kron_adapter::Existing;
use kron_adapter::io::{Flush, write_whole};
use xxhash_rust::xxh3::Xxh3;

use super::base::Shard;
use super::fold::{BAND, Fold};
use super::map::Map;
use crate::files::Input;
use crate::watch::Watch;
use crate::{Error, Result};

/// Bands in flight: one in each thread's hands, and one between each two.
const BANDS: usize = 6;

/// What is folded into which tensor of a shard.
type Folds<'a> = HashMap<usize, &'a Fold>;

/// Writes the merged shard to `out`, whole or not at all; the hash of its bytes.
///
/// # Errors
/// A shard that cannot be read or has changed, a sum that its dtype cannot
/// hold, a signal, and what the system refuses.
pub fn write(
    shard: &Shard,
    folds: &Folds,
    out: &Path,
    (existing, flush): (Existing, Flush),
    watch: &Watch,
) -> Result<u128> {
    let mut hash = Xxh3::new();
    // The writer below can only fail with an error of the system; ours is kept beside it.
    let mut failed = None;
    let written = write_whole(out, existing, flush, |to| {
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
        None => written.map(|()| hash.digest128()),
    }
}

/// The hash of a file's bytes.
///
/// # Errors
/// What the system refuses.
pub fn hash(path: &Path) -> Result<u128> {
    let (mut hash, mut buffer) = (Xxh3::new(), vec![0; BAND]);
    let input = Input::open(path)?;
    let mut file = input.into_file();
    loop {
        match file.read(&mut buffer).map_err(|e| unreadable(path, &e))? {
            0 => return Ok(hash.digest128()),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn pass(shard: &Shard, folds: &Folds, to: &mut Sink) -> Result<()> {
    let mut input = Input::open(&shard.path)?;
    let mut header = Vec::new();
    let len = input.len();
    input.append(shard.header.len() as u64, &mut header)?;
    if header != shard.header || len != shard.len {
        return Err(Error::data(format!("{} changed while it was merged", shard.path.display())));
    }
    to.put(&header)?;
    let from = Map::new(input.into_file(), &shard.path, header.len() as u64);
    std::thread::scope(|scope| {
        let (give_back, empty) = sync_channel(BANDS);
        for _ in 0..BANDS {
            // The channel holds them all.
            let _ = give_back.send(Vec::new());
        }
        let (read_to, read) = sync_channel(BANDS);
        let (folded_to, folded) = sync_channel(BANDS);
        scope.spawn(move || copy_bands(shard, folds, from, &empty, &read_to));
        scope.spawn(move || fold_bands(shard, folds, &read, &folded_to));
        // Leaving early hangs up on both threads, which ends them.
        for band in folded {
            let band: Band = band?;
            to.put(band.bytes())?;
            // The reader has all it needs when it no longer listens.
            let _ = give_back.send(band.words);
        }
        Ok(())
    })
}

fn copy_bands(
    shard: &Shard,
    folds: &Folds,
    mut from: Map,
    empty: &Receiver<Vec<u32>>,
    to: &SyncSender<Result<Band>>,
) {
    for cut in cuts(shard, folds) {
        let Ok(words) = empty.recv() else { return };
        let mut band = Band::new(cut, words);
        let copied = from.next(band.bytes_mut());
        let failed = copied.is_err();
        if to.send(copied.map(|()| band)).is_err() || failed {
            return;
        }
    }
}

fn fold_bands(shard: &Shard, folds: &Folds, from: &Receiver<Result<Band>>, to: &SyncSender<Result<Band>>) {
    let mut workspace = Vec::new();
    for band in from {
        let folded = band.and_then(|mut band| {
            if let Some((slot, first_row)) = band.cut.rows
                && let Some(fold) = folds.get(&slot)
            {
                fold.add(&shard.tensors[slot].name, first_row, band.bytes_mut(), &mut workspace)?;
            }
            Ok(band)
        });
        let failed = folded.is_err();
        if to.send(folded).is_err() || failed {
            return;
        }
    }
}

/// A run of a shard's bytes.
#[derive(Clone, Copy)]
struct Cut {
    len: usize,
    /// The tensor by its place and the first of these rows, where ΔW is added.
    rows: Option<(usize, usize)>,
}

/// A shard's bytes after the header, in order: bands of rows where ΔW is added,
/// and runs over as many tensors as there are between them.
fn cuts(shard: &Shard, folds: &Folds) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let mut between = 0;
    let runs = |cuts: &mut Vec<Cut>, mut left: u64| {
        while left > 0 {
            let len = left.min(BAND as u64) as usize;
            cuts.push(Cut { len, rows: None });
            left -= len as u64;
        }
    };
    for (i, slot) in shard.tensors.iter().enumerate() {
        match folds.get(&i) {
            None => between += slot.len,
            Some(fold) => {
                runs(&mut cuts, std::mem::take(&mut between));
                cuts.extend(fold.bands().map(|(first_row, len)| Cut { len, rows: Some((i, first_row)) }));
            }
        }
    }
    runs(&mut cuts, between);
    cuts
}

/// A cut's bytes.
struct Band {
    cut: Cut,
    /// Aligned for every dtype.
    words: Vec<u32>,
}

impl Band {
    /// In memory that was another band's.
    fn new(cut: Cut, mut words: Vec<u32>) -> Self {
        words.resize(cut.len.div_ceil(4), 0);
        Self { cut, words }
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.cut.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.cut.len]
    }
}

pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Error {
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
        self.watch.passed(bytes.len() as u64)
    }
}
