//! A file on its way to the disk: a thread writes what the caller has filled.
//!
//! ```text
//! caller ──▶ fills a piece ──▶ thread writes it        three pieces go round
//!   ▲────────── empty pieces ──────────┘
//! ```

use std::fs::File;
use std::io::{Error as IoError, ErrorKind, Result, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::atomic::Flush;

/// Bytes that are handed over at a time; a file of fewer needs no thread.
const PIECE: usize = 4 << 20;
const PIECES: usize = 3;

/// What a write past the cache has to be aligned to, in memory and in the file, on usual disks.
const BLOCK: usize = 4096;

/// The most bytes of one call that goes through the cache: for a longer one Linux looks
/// for large free stretches of memory, which takes several times as long as writing.
const CALL: usize = 256 << 10;

/// Takes bytes in order, and hands them to the disk.
pub(super) struct Stream<'a> {
    file: &'a File,
    path: &'a Path,
    flush: Flush,
    filling: Piece,
    writer: Option<Writer>,
    /// Bytes that were handed over.
    at: u64,
}

impl<'a> Stream<'a> {
    /// Into an empty file, open under this path.
    pub fn new(file: &'a File, path: &'a Path, flush: Flush) -> Self {
        Self { file, path, flush, filling: Piece::new(), writer: None, at: 0 }
    }

    /// Writes what is left, and waits until the disk holds all if that is wanted.
    pub fn finish(self) -> Result<()> {
        if let Some(writer) = self.writer {
            writer.end()?;
        }
        put(self.file, self.at, self.filling.bytes())?;
        if self.flush == Flush::Now { self.file.sync_all() } else { Ok(()) }
    }

    fn target(&self) -> Result<Target> {
        // What goes to the disk later is for the cache to hold until then.
        let direct = if self.flush == Flush::Now { direct(self.path) } else { None };
        Ok(Target { file: self.file.try_clone()?, direct, at: 0 })
    }

    fn hand_over(&mut self) -> Result<()> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::start(self.target()?)?,
        };
        self.at += self.filling.len as u64;
        let full = std::mem::replace(&mut self.filling, Piece::none());
        if writer.full.send(full).is_ok()
            && let Ok(empty) = writer.empty.recv()
        {
            self.filling = empty;
            self.writer = Some(writer);
            return Ok(());
        }
        // The thread ends early only by an error.
        writer.end().and(Err(IoError::other("the writing thread ended")))
    }
}

impl Write for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let taken = self.filling.fill(bytes);
        if self.filling.is_full() {
            self.hand_over()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Memory of [`PIECE`] bytes from an aligned address on.
struct Piece {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Piece {
    fn new() -> Self {
        let memory = vec![0; PIECE + BLOCK];
        // Unaligned memory only means that the bytes go through the cache.
        let start = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        Self { memory, start, len: 0 }
    }

    /// Stands for a piece that is elsewhere.
    const fn none() -> Self {
        Self { memory: Vec::new(), start: 0, len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }

    const fn is_full(&self) -> bool {
        self.len == PIECE
    }

    /// How many of the bytes there was room for.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let room = self.memory.len().min(PIECE).saturating_sub(self.len);
        let taken = room.min(bytes.len());
        self.memory[self.start + self.len..][..taken].copy_from_slice(&bytes[..taken]);
        self.len += taken;
        taken
    }
}

struct Writer {
    full: SyncSender<Piece>,
    empty: Receiver<Piece>,
    thread: JoinHandle<Result<()>>,
}

impl Writer {
    fn start(mut target: Target) -> Result<Self> {
        let (full, filled) = sync_channel::<Piece>(PIECES);
        let (give_back, empty) = sync_channel(PIECES);
        for _ in 1..PIECES {
            // The channel holds them all.
            let _ = give_back.send(Piece::new());
        }
        let work = move || {
            for mut piece in filled {
                target.write(piece.bytes())?;
                piece.len = 0;
                // A caller that has hung up is told by `end`.
                let _ = give_back.send(piece);
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("write".into()).spawn(work)?;
        Ok(Self { full, empty, thread })
    }

    /// Waits until all that was handed over is written.
    fn end(self) -> Result<()> {
        drop(self.full);
        self.thread.join().unwrap_or_else(|_| Err(IoError::other("writing was cut short")))
    }
}

/// The file, past the cache as long as the system does that.
struct Target {
    file: File,
    direct: Option<File>,
    at: u64,
}

impl Target {
    /// Writes a full piece.
    fn write(&mut self, piece: &[u8]) -> Result<()> {
        let at = self.at;
        self.at += piece.len() as u64;
        match self.direct.as_mut().map(|direct| direct.write_all(piece)) {
            // The file system, or the disk, wants another alignment or none of it.
            Some(Err(e)) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                self.direct = None;
                put(&self.file, at, piece)
            }
            Some(done) => done,
            None => put(&self.file, at, piece),
        }
    }
}

fn put(mut file: &File, at: u64, bytes: &[u8]) -> Result<()> {
    file.seek(SeekFrom::Start(at))?;
    bytes.chunks(CALL).try_for_each(|call| file.write_all(call))
}

#[cfg(target_os = "linux")]
fn direct(path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flag = rustix::fs::OFlags::DIRECT.bits();
    File::options().write(true).custom_flags(i32::try_from(flag).ok()?).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn direct(_: &Path) -> Option<File> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * i / 251) as u8).collect()
    }

    #[test]
    fn every_length_arrives_whole_however_it_is_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let lens = [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE, 5 * PIECE + 77];
        for (i, len) in lens.into_iter().chain(lens).enumerate() {
            let flush = if i < lens.len() { Flush::Now } else { Flush::Later };
            let path = folder.path().join(i.to_string());
            let file = File::create_new(&path).expect("a file");
            let mut stream = Stream::new(&file, &path, flush);
            let bytes = numbers(len);
            for part in bytes.chunks(1 << 20 | 7) {
                stream.write_all(part).expect("room");
            }
            stream.finish().expect("room");
            assert!(std::fs::read(&path).expect("the file") == bytes, "{len} bytes");
        }
    }

    #[test]
    fn a_target_without_a_way_past_the_cache_writes_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let file = File::create_new(&path).expect("a file");
        let mut target = Target { file, direct: None, at: 0 };
        let bytes = numbers(2 * PIECE);
        bytes.chunks(PIECE).for_each(|piece| target.write(piece).expect("room"));
        assert!(std::fs::read(&path).expect("the file") == bytes);
    }

    #[test]
    fn an_unaligned_piece_goes_through_the_cache() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let file = File::create_new(&path).expect("a file");
        let mut target = Target { file, direct: direct(&path), at: 0 };
        let bytes = numbers(PIECE + 1);
        target.write(&bytes[1..]).expect("room");
        target.write(&bytes[..100]).expect("room");
        let whole = [&bytes[1..], &bytes[..100]].concat();
        assert!(std::fs::read(&path).expect("the file") == whole);
    }

    #[test]
    fn an_error_of_the_thread_reaches_the_caller() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "").expect("a file");
        let unwritable = File::open(&path).expect("a file");
        // The path of another file, so that there is no way past the cache either.
        let mut stream = Stream::new(&unwritable, Path::new("/"), Flush::Now);
        let bytes = numbers(PIECE);
        let refused = (0..8).find_map(|_| stream.write_all(&bytes).err());
        let refused = refused.map_or_else(|| stream.finish(), Err);
        assert!(refused.is_err(), "a file that is open for reading takes no bytes");
    }
}
