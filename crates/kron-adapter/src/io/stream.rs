//! A writer with a thread of its own: the caller fills pieces, the thread writes them.
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

use super::direct;
use super::options::Flush;

/// Bytes of a piece; a shorter file starts no thread.
const PIECE: usize = 4 << 20;
const PIECES: usize = 3;

/// Alignment of a write past the cache, in memory and in the file, on common disks.
const BLOCK: usize = 4096;

/// Longest write through the cache, in bytes: for a longer one Linux searches for
/// large free stretches of memory, which takes several times as long as writing.
const CALL: usize = 256 << 10;

/// Takes bytes in order and writes them to a file.
pub(super) struct Stream<'a> {
    file: &'a File,
    path: &'a Path,
    flush: Flush,
    filling: Piece,
    writer: Option<Writer>,
    /// Number of bytes sent to the thread.
    at: u64,
}

impl<'a> Stream<'a> {
    /// Starts at the beginning of an empty file that is open under this path.
    pub fn new(file: &'a File, path: &'a Path, flush: Flush) -> Self {
        Self { file, path, flush, filling: Piece::new(), writer: None, at: 0 }
    }

    /// Writes the rest; under [`Flush::Now`] waits until the disk holds all.
    pub fn finish(self) -> Result<()> {
        if let Some(writer) = self.writer {
            writer.end()?;
        }
        put(self.file, self.at, self.filling.bytes())?;
        if self.flush == Flush::Now { self.file.sync_all() } else { Ok(()) }
    }

    fn target(&self) -> Result<Target> {
        // Bytes that may reach the disk later belong into the cache.
        let direct = if self.flush == Flush::Now { direct::open(self.path) } else { None };
        Ok(Target { file: self.file.try_clone()?, direct, at: 0 })
    }

    fn send_piece(&mut self) -> Result<()> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::start(self.target()?)?,
        };
        self.at += self.filling.len as u64;
        let full = std::mem::replace(&mut self.filling, Piece::empty());
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
            self.send_piece()?;
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

    /// Placeholder for a piece that the thread holds.
    const fn empty() -> Self {
        Self { memory: Vec::new(), start: 0, len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.len]
    }

    const fn is_full(&self) -> bool {
        self.len == PIECE
    }

    /// Copies as many bytes as fit, and returns their number.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        let free = self.memory.len().min(PIECE).saturating_sub(self.len);
        let taken = free.min(bytes.len());
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
                // `end` reports the error to a caller that has hung up.
                let _ = give_back.send(piece);
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("write".into()).spawn(work)?;
        Ok(Self { full, empty, thread })
    }

    /// Waits until every piece is written.
    fn end(self) -> Result<()> {
        drop(self.full);
        self.thread.join().unwrap_or_else(|_| Err(IoError::other("writing was cut short")))
    }
}

/// The file, written past the cache as long as the system allows it.
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
            // The file system or the disk requires another alignment, or refuses.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(len: usize) -> Vec<u8> {
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
            let bytes = pattern(len);
            for part in bytes.chunks(1 << 20 | 7) {
                stream.write_all(part).expect("enough space");
            }
            stream.finish().expect("enough space");
            assert!(std::fs::read(&path).expect("the file") == bytes, "{len} bytes");
        }
    }

    #[test]
    fn a_target_without_a_way_past_the_cache_writes_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let file = File::create_new(&path).expect("a file");
        let mut target = Target { file, direct: None, at: 0 };
        let bytes = pattern(2 * PIECE);
        bytes.chunks(PIECE).for_each(|piece| target.write(piece).expect("enough space"));
        assert!(std::fs::read(&path).expect("the file") == bytes);
    }

    #[test]
    fn an_unaligned_piece_goes_through_the_cache() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let file = File::create_new(&path).expect("a file");
        let mut target = Target { file, direct: direct::open(&path), at: 0 };
        let bytes = pattern(PIECE + 1);
        target.write(&bytes[1..]).expect("enough space");
        target.write(&bytes[..100]).expect("enough space");
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
        let bytes = pattern(PIECE);
        let refused = (0..8).find_map(|_| stream.write_all(&bytes).err());
        let refused = refused.map_or_else(|| stream.finish(), Err);
        assert!(refused.is_err(), "a file that is open for reading takes no bytes");
    }
}
