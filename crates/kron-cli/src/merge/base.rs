//! The model: where every tensor lies, known before any of them is read.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use kron_adapter::files::{self, Input};
use safetensors::Dtype;
use serde::Deserialize;

use crate::model::{CONFIG, Config};
use crate::{Error, Result};

/// The file that says which shard holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";
/// The file of a model that is not sharded.
pub const SINGLE: &str = "model.safetensors";
/// Bytes of an index: room for some million tensors.
const MAX_INDEX_BYTES: u64 = 1 << 28;

/// A model's files, their headers read and checked.
pub struct Base {
    path: PathBuf,
    is_folder: bool,
    /// In the order of their names.
    pub shards: Vec<Shard>,
    /// The configuration beside them.
    pub config: Option<Config>,
    /// The bytes of [`INDEX`].
    pub index: Option<Vec<u8>>,
    places: HashMap<String, (usize, usize)>,
}

/// One safetensors file.
pub struct Shard {
    /// Where it is.
    pub path: PathBuf,
    /// Its name in the folder.
    pub name: String,
    /// Length and JSON of the header, as they are in the file.
    pub header: Vec<u8>,
    /// Its length.
    pub len: u64,
    /// In the order of the file, without a gap.
    pub tensors: Vec<Slot>,
}

/// One tensor.
pub struct Slot {
    /// Its name.
    pub name: String,
    /// The numbers' format.
    pub dtype: Dtype,
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its bytes.
    pub len: u64,
}

impl Base {
    /// Reads all headers.
    ///
    /// # Errors
    /// No model there, or files that are damaged or do not belong together.
    pub fn open(path: &Path) -> Result<Self> {
        let is_folder = path.is_dir();
        let folder = if is_folder { path } else { path.parent().unwrap_or(Path::new("")) };
        let index = folder.join(INDEX);
        let has_index = is_folder && index.exists();
        let index = if has_index { Some(files::read(&index, MAX_INDEX_BYTES)?) } else { None };
        let map = index.as_deref().map(|bytes| weight_map(&folder.join(INDEX), bytes)).transpose()?;
        let paths: Vec<PathBuf> = match &map {
            Some(map) => {
                let names: std::collections::BTreeSet<_> = map.values().collect();
                names.into_iter().map(|name| folder.join(name)).collect()
            }
            None if is_folder && !path.join(SINGLE).exists() => {
                return Err(Error::data(format!("{} has neither {SINGLE} nor {INDEX}", path.display())));
            }
            None if is_folder => vec![path.join(SINGLE)],
            None => vec![path.to_path_buf()],
        };
        let shards = paths.into_iter().map(Shard::open).collect::<Result<Vec<_>>>()?;
        let config = Some(folder.join(CONFIG)).filter(|config| config.exists());
        let config = config.map(|config| Config::read(&config)).transpose()?;
        let places = places(&shards)?;
        let base = Self { path: path.into(), is_folder, shards, config, index, places };
        map.map_or(Ok(()), |map| base.check_map(&map))?;
        Ok(base)
    }

    /// The folder, when it is one.
    pub fn folder(&self) -> Option<&Path> {
        self.is_folder.then_some(&self.path)
    }

    /// The path, as messages give it.
    pub fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len).sum()
    }

    /// The shard and the place in it of a tensor.
    pub fn find(&self, tensor: &str) -> Option<(usize, usize)> {
        self.places.get(tensor).copied()
    }

    /// A tensor by its place.
    pub fn slot(&self, (shard, slot): (usize, usize)) -> &Slot {
        &self.shards[shard].tensors[slot]
    }

    /// Whether the configuration says that a module's weight lies as d_in × d_out.
    pub fn transposed(&self, module: &str) -> bool {
        self.config.as_ref().is_some_and(|config| config.transposed(module))
    }

    /// All tensors' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().flat_map(|shard| &shard.tensors).map(|slot| slot.name.as_str())
    }

    /// All modules that have a weight.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.names().filter_map(|name| name.strip_suffix(".weight"))
    }

    /// That every tensor is in the shard that the index names.
    fn check_map(&self, map: &BTreeMap<String, String>) -> Result<()> {
        for (tensor, file) in map {
            if self.find(tensor).is_none_or(|(shard, _)| self.shards[shard].name != *file) {
                return Err(Error::data(format!(
                    "{}: {INDEX} puts tensor {tensor:?} into {file}, which does not have it",
                    self.path()
                )));
            }
        }
        Ok(())
    }
}

/// Tensor and file of each entry; a file is a plain name in the folder.
fn weight_map(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = path.display();
    let Index { weight_map } = serde_json::from_slice(bytes)
        .map_err(|e| Error::data(format!("{path} is no index of shards: {e}")))?;
    if weight_map.is_empty() {
        return Err(Error::data(format!("{path} names no tensor")));
    }
    let plain = |name: &str| {
        name.ends_with(".safetensors")
            && !name.starts_with('.')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    if let Some(name) = weight_map.values().find(|name| !plain(name)) {
        return Err(Error::data(format!(
            "{path} names the shard {name:?}, but a shard is a plain name that ends in .safetensors"
        )));
    }
    Ok(weight_map)
}

fn places(shards: &[Shard]) -> Result<HashMap<String, (usize, usize)>> {
    let mut places = HashMap::new();
    for (i, shard) in shards.iter().enumerate() {
        for (j, slot) in shard.tensors.iter().enumerate() {
            if let Some((other, _)) = places.insert(slot.name.clone(), (i, j)) {
                return Err(Error::data(format!(
                    "tensor {:?} is in {} and in {}, but a tensor has one place",
                    slot.name, shards[other].name, shard.name
                )));
            }
        }
    }
    Ok(places)
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self> {
        let mut input = Input::open(&path)?;
        let (header, layout) = input.layout()?;
        let mut tensors = Vec::new();
        for name in layout.tensors.offset_keys() {
            let Some(info) = layout.tensors.info(&name) else { continue };
            let (start, end) = info.data_offsets;
            tensors.push(Slot {
                dtype: info.dtype,
                shape: info.shape.clone(),
                len: (end - start) as u64,
                name,
            });
        }
        let len = input.len();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { path, name, header, len, tensors })
    }
}
