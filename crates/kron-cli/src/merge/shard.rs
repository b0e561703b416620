//! Merge of one shard: copies its bytes and changes the adapted and the replaced tensors on the way.
//!
//! ```text
//! read ──▶ add ΔW ──▶ hash and write        one thread each, a few bands in flight
//!   ▲──────── empty bands ─────┘
//! ```

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use kron_adapter::IfExists;
use kron_adapter::io::Input;
use kron_adapter::io::{Flush, write_whole};
use xxhash_rust::xxh3::Xxh3;

use super::fold::{BAND, Fold, Workspace};
use super::map::{Map, cannot_read};
use crate::model::Shard;
use crate::progress::WriteProgress;
use crate::{Error, Result};

/// Number of bands in flight: one per thread and some between them.
const BANDS: usize = 6;

/// Folds of a shard, by the index of the tensor in it.
type Folds<'a> = HashMap<usize, &'a Fold<'a>>;

/// Writes the merged shard to `out`, completely or not at all, and returns the hash of its bytes.
///
/// # Errors
/// The shard cannot be read or has changed, a sum exceeds its dtype, a signal came, or the output cannot
/// be written.
pub fn write(
    shard: &Shard,
    folds: &Folds,
    out: &Path,
    (existing, flush): (IfExists, Flush),
    progress: &WriteProgress,
) -> Result<u128> {
    let mut hash = Xxh3::new();
    // `write_whole` takes only an I/O error, so another error is kept here.
    let mut failed = None;
    let written = write_whole(out, existing, flush, |to| {
        let mut to = Sink { to, hash: &mut hash, refused: None, progress };
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

/// Returns the hash of a file's bytes.
///
/// # Errors
/// The file cannot be read.
pub fn hash(path: &Path) -> Result<u128> {
    let (mut hash, mut buffer) = (Xxh3::new(), vec![0; BAND]);
    let input = Input::open(path)?;
    let mut file = input.into_file();
    loop {
        match file.read(&mut buffer).map_err(|e| cannot_read(path, &e))? {
            0 => return Ok(hash.digest128()),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Reads a tensor from a byte of it on, in bands of these lengths, and calls `with` with the first row and the bytes of each.
///
/// # Errors
/// The shard cannot be read, and if `with` fails.
pub fn read_tensor(
    shard: &Shard,
    index: usize,
    from: u64,
    bands: Vec<(usize, usize)>,
    mut with: impl FnMut(usize, &mut [u8]) -> Result<()>,
) -> Result<()> {
    let at = shard.position(index) + from;
    let mut file = Input::open(&shard.path)?.into_file();
    file.seek(SeekFrom::Start(at)).map_err(|e| cannot_read(&shard.path, &e))?;
    let mut from = Map::new(file, &shard.path, at);
    let mut words: Vec<u32> = Vec::new();
    for (first_row, len) in bands {
        words.resize(len.div_ceil(4), 0);
        let band = &mut bytemuck::cast_slice_mut(&mut words)[..len];
        from.next(band)?;
        with(first_row, band)?;
    }
    Ok(())
}

/// Sends the header and all bands of a shard through three threads.
fn pass(shard: &Shard, folds: &Folds, to: &mut Sink) -> Result<()> {
    let mut input = Input::open(&shard.path)?;
    let mut header = Vec::new();
    let len = input.len();
    input.append(shard.header.len() as u64, &mut header)?;
    if header != shard.header || len != shard.len {
        return Err(Error::data(format!("{} changed while it was merged", shard.path.display())));
    }
    to.put(shard.out_header())?;
    let from = Map::new(input.into_file(), &shard.path, header.len() as u64);
    std::thread::scope(|scope| {
        let (give_back, empty) = sync_channel(BANDS);
        for _ in 0..BANDS {
            // The channel holds all bands.
            let _ = give_back.send(Vec::new());
        }
        let (read_to, read) = sync_channel(BANDS);
        let (folded_to, folded) = sync_channel(BANDS);
        // Where the system refuses a second thread, the first one ends as its channel closes.
        let refused = |e| Error::data(format!("a thread cannot be started: {e}"));
        let thread = std::thread::Builder::new;
        thread()
            .spawn_scoped(scope, move || read_bands(shard, folds, from, &empty, &read_to))
            .map_err(refused)?;
        thread().spawn_scoped(scope, move || fold_bands(shard, folds, &read, &folded_to)).map_err(refused)?;
        // Returning early closes the channels, which ends both threads.
        for band in folded {
            let band: Band = band?;
            to.put(band.bytes())?;
            // After the last band the reader no longer receives.
            let _ = give_back.send(band.words);
        }
        Ok(())
    })
}

fn read_bands(
    shard: &Shard,
    folds: &Folds,
    mut from: Map,
    empty: &Receiver<Vec<u32>>,
    to: &SyncSender<Result<Band>>,
) {
    for cut in cuts(shard, folds) {
        let Ok(words) = empty.recv() else { return };
        let mut band = Band::new(cut, words);
        let positioned = cut.at.map_or(Ok(()), |at| from.jump(at));
        let read = positioned.and_then(|()| from.next(band.bytes_mut()));
        let failed = read.is_err();
        if to.send(read.map(|()| band)).is_err() || failed {
            return;
        }
    }
}

fn fold_bands(shard: &Shard, folds: &Folds, from: &Receiver<Result<Band>>, to: &SyncSender<Result<Band>>) {
    let mut workspace = Workspace::default();
    for band in from {
        let folded = band.and_then(|mut band| {
            if let Some((slot, first_row)) = band.cut.rows
                && let Some(fold) = folds.get(&slot)
            {
                fold.apply(&shard.tensors[slot].name, first_row, band.bytes_mut(), &mut workspace)?;
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
    /// Position of the bytes in the file, where they do not follow those before.
    at: Option<u64>,
    /// Index of the tensor and the first of these rows, where it changes.
    rows: Option<(usize, usize)>,
}

/// Cuts a shard's bytes after the header into bands of rows that change, and runs over the
/// tensors between them.
fn cuts(shard: &Shard, folds: &Folds) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let mut between = 0;
    let runs = |cuts: &mut Vec<Cut>, mut left: u64| {
        while left > 0 {
            let len = left.min(BAND as u64) as usize;
            cuts.push(Cut { len, at: None, rows: None });
            left -= len as u64;
        }
    };
    for (i, slot) in shard.tensors.iter().enumerate() {
        let copied = shard.appended.as_ref().filter(|_| i + 1 == shard.tensors.len());
        if copied.is_some() {
            runs(&mut cuts, std::mem::take(&mut between));
        }
        let begun = cuts.len();
        match folds.get(&i) {
            None => between += slot.len,
            Some(fold) => {
                runs(&mut cuts, std::mem::take(&mut between));
                cuts.extend(fold.bands().map(|(first_row, len)| Cut {
                    len,
                    at: None,
                    rows: Some((i, first_row)),
                }));
            }
        }
        if let Some(copied) = copied {
            runs(&mut cuts, std::mem::take(&mut between));
            if let Some(first) = cuts.get_mut(begun) {
                first.at = Some(copied.at);
            }
        }
    }
    runs(&mut cuts, between);
    cuts
}

/// Bytes of a cut.
struct Band {
    cut: Cut,
    /// Words, so that the bytes are aligned for every dtype.
    words: Vec<u32>,
}

impl Band {
    /// Reuses the memory of another band.
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

/// Output that hashes and counts the bytes.
struct Sink<'a> {
    to: &'a mut dyn Write,
    hash: &'a mut Xxh3,
    refused: Option<std::io::Error>,
    progress: &'a WriteProgress,
}

impl Sink<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        if let Err(e) = self.to.write_all(bytes) {
            self.refused = Some(e);
            return Err(Error::data("the output cannot be written"));
        }
        self.progress.advance(bytes.len() as u64)
    }
}
