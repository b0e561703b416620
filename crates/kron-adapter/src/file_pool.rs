//! [`FilePool`]: adapters of many users, read from their files when they are asked for, within a limit of memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kron_core::PoolEntry;

use crate::combine::sums_as_lora;
use crate::{Adapter, Error, Layer, Result, read};

/// Adapters read from files on demand: the least recently used give way once the limit is reached.
///
/// An adapter is in use while anybody holds what [`FilePool::get`] returned, and stays in the pool for that time.
/// Files are read whole, in any format of [`read`](fn@crate::read) and within its [`limits`](crate::limits). They are
/// not mapped: another process may write to a file or cut it short, which would change factors under a running
/// product, or end the process.
///
/// Any thread may ask. Two that ask for one file at once may both read it; the pool keeps one of the two.
///
/// ```
/// use kron_adapter::{Adapter, FilePool, IfExists, Layer, Scaling};
/// use kron_core::{KronShape, LayerDims, Theta};
///
/// # let folder = tempfile::tempdir()?;
/// let shape = KronShape::lora(LayerDims { d_out: 12, d_in: 8 }, 2)?;
/// for user in ["ada", "emmy", "mary"] {
///     let layer = Layer::new("q_proj", Scaling::plain(0.5)?, Theta::random(shape, 1))?;
///     Adapter::new(vec![layer])?.write(folder.path().join(user), IfExists::Refuse)?;
/// }
///
/// let pool = FilePool::new(2 * 4 * 40); // two adapters of 40 float32 values
/// let ada = pool.get(folder.path().join("ada"))?;
/// pool.get(folder.path().join("emmy"))?;
/// pool.get(folder.path().join("mary"))?; // takes the place of emmy's: ada's is in use
/// let stats = pool.stats();
/// assert_eq!((stats.misses, stats.evictions, stats.bytes), (3, 1, 320));
/// assert_eq!(ada.entry("q_proj").expect("a layer").theta.len(), 40);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FilePool {
    limit: u64,
    held: Mutex<Held>,
}

/// An adapter of a [`FilePool`], for reading.
#[derive(Debug)]
pub struct PooledAdapter {
    path: PathBuf,
    adapter: Adapter,
    /// Numbers of the layers by module: an adapter may have hundreds, and a batch asks for each of them.
    by_module: HashMap<String, usize>,
    bytes: u64,
}

/// Counts of a [`FilePool`] since it was made, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilePoolStats {
    /// Adapters that were asked for and held already.
    pub hits: u64,
    /// Adapters that were read from their files; failed reads are not counted.
    pub misses: u64,
    /// Adapters that gave way to others.
    pub evictions: u64,
    /// Adapters held.
    pub adapters: usize,
    /// Bytes of their factors.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Held {
    by_path: HashMap<PathBuf, Place>,
    /// Number of calls of `get` that found or read an adapter.
    clock: u64,
    stats: FilePoolStats,
}

#[derive(Debug)]
struct Place {
    adapter: Arc<PooledAdapter>,
    last_used: u64,
}

impl FilePool {
    /// Makes an empty pool that holds factors of at most `limit` bytes, 4 for each parameter.
    ///
    /// An adapter that is being read takes its memory beside them. A sum of terms is held as the equal LoRA, which has
    /// more bytes.
    pub fn new(limit: u64) -> Self {
        Self { limit, held: Mutex::default() }
    }

    /// Returns the adapter of a file or folder, which is read unless the pool has it under this path.
    ///
    /// # Errors
    /// Fails as [`read`](fn@crate::read) does, on an adapter with tensors beside its factors and on one with
    /// `fan_in_fan_out`, neither of which rows of many adapters can have, and if the adapter and those in use exceed the limit
    /// together. The message names the file, and the pool is as it was.
    pub fn get(&self, path: impl AsRef<Path>) -> Result<Arc<PooledAdapter>> {
        let path = path.as_ref();
        if let Some(found) = self.lock().find(path) {
            return Ok(found);
        }
        // Without the lock, so that other threads find theirs meanwhile.
        let read = PooledAdapter::read(path)?;
        let mut held = self.lock();
        match held.find(path) {
            Some(found) => Ok(found),
            None => held.insert(read, self.limit),
        }
    }

    /// Forgets the adapter of a path, so that its file is read again; returns true if the pool had it.
    ///
    /// Whoever uses it keeps it.
    pub fn remove(&self, path: impl AsRef<Path>) -> bool {
        self.lock().remove(path.as_ref())
    }

    /// Returns the counts.
    pub fn stats(&self) -> FilePoolStats {
        self.lock().stats
    }

    /// Largest number of bytes held.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Nothing panics between two changes that belong together.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn find(&mut self, path: &Path) -> Option<Arc<PooledAdapter>> {
        let place = self.by_path.get_mut(path)?;
        self.clock += 1;
        self.stats.hits += 1;
        place.last_used = self.clock;
        Some(Arc::clone(&place.adapter))
    }

    fn insert(&mut self, read: PooledAdapter, limit: u64) -> Result<Arc<PooledAdapter>> {
        // Handles are cloned under the lock alone, so that one which only the pool has stays so.
        let (idle, used): (Vec<&Place>, Vec<&Place>) =
            self.by_path.values().partition(|place| Arc::strong_count(&place.adapter) == 1);
        let used: u64 = used.iter().map(|place| place.adapter.bytes).sum();
        if used.saturating_add(read.bytes) > limit {
            return Err(Error::usage(format!(
                "{} takes {} bytes beside {used} of adapters in use, but the pool has {limit}",
                read.path.display(),
                read.bytes
            )));
        }
        let mut idle: Vec<(u64, PathBuf)> =
            idle.iter().map(|place| (place.last_used, place.adapter.path.clone())).collect();
        idle.sort_unstable();
        let mut oldest = idle.into_iter();
        while self.stats.bytes + read.bytes > limit
            && let Some((_, path)) = oldest.next()
        {
            self.remove(&path);
            self.stats.evictions += 1;
        }
        self.clock += 1;
        self.stats.misses += 1;
        self.stats.adapters += 1;
        self.stats.bytes += read.bytes;
        let adapter = Arc::new(read);
        let place = Place { adapter: Arc::clone(&adapter), last_used: self.clock };
        self.by_path.insert(adapter.path.clone(), place);
        Ok(adapter)
    }

    fn remove(&mut self, path: &Path) -> bool {
        let Some(place) = self.by_path.remove(path) else { return false };
        self.stats.adapters -= 1;
        self.stats.bytes -= place.adapter.bytes;
        true
    }
}

impl PooledAdapter {
    fn read(path: &Path) -> Result<Self> {
        let mut loaded = read(path)?;
        loaded.check_writable()?;
        if let Some(trained) = loaded.adapter.trained_summary() {
            return Err(Error::data(format!(
                "{} has {trained} beside its factors, but rows of many adapters share all other tensors",
                path.display()
            )));
        }
        let adapter = sums_as_lora(&loaded.adapter, None, &mut loaded.limits)?.into_owned();
        let modules = adapter.layers().iter().map(|layer| layer.module().to_owned());
        let by_module = modules.zip(0..).collect();
        let bytes = 4 * adapter.params() as u64;
        Ok(Self { path: path.into(), adapter, by_module, bytes })
    }

    /// Path that it was asked for by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The layers, in order.
    pub fn layers(&self) -> &[Layer] {
        self.adapter.layers()
    }

    /// Returns the layer of a module.
    pub fn layer(&self, module: &str) -> Option<&Layer> {
        Some(&self.adapter.layers()[*self.by_module.get(module)?])
    }

    /// Returns the layer of a module for an [`AdapterPool`](kron_core::AdapterPool), without dropout.
    pub fn entry(&self, module: &str) -> Option<PoolEntry<'_>> {
        let layer = self.layer(module)?;
        Some(PoolEntry { op: layer.op(), theta: layer.theta().as_slice() })
    }

    /// Bytes of the factors.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}
