//! A model's files, with the place of every tensor, read from the headers alone.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use kron_adapter::io::Input;
use kron_adapter::model_files::{CONFIG, INDEX, SINGLE, ShardIndex};
use kron_adapter::resolve::BaseModel;
use kron_adapter::text;
use safetensors::Dtype;

use super::append;
use super::config::Config;
use crate::{Error, Result};

/// A model's files with their checked headers.
pub struct Base {
    path: PathBuf,
    is_folder: bool,
    /// Shards, in the order of their names.
    pub shards: Vec<Shard>,
    /// Configuration in the same folder.
    pub config: Option<Config>,
    /// Bytes of [`INDEX`].
    pub index: Option<Vec<u8>>,
    /// True if embedding and head are known to be one weight, false if they are known to be two.
    pub tied: Option<bool>,
    /// Index of the shard, and of the tensor in it, by the tensor's name.
    places: HashMap<String, (usize, usize)>,
}

/// One safetensors file of a model.
pub struct Shard {
    /// Path.
    pub path: PathBuf,
    /// Name in the folder.
    pub name: String,
    /// First bytes of the file: length and JSON of the header.
    pub header: Vec<u8>,
    /// Length of the file in bytes.
    pub len: u64,
    /// Tensors in the order of the file, without gaps; after them the appended one.
    pub tensors: Vec<TensorEntry>,
    /// Header of the output and place of the last tensor's bytes, where a copy of a tensor is appended.
    pub appended: Option<Appended>,
}

/// Copy of a tensor at the end of a shard.
pub struct Appended {
    /// First bytes of the output: length and JSON of its header.
    pub header: Vec<u8>,
    /// Position of the copied bytes in the file.
    pub at: u64,
}

/// One tensor in a shard's header.
pub struct TensorEntry {
    /// Name.
    pub name: String,
    /// Type of the elements.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Length in bytes.
    pub len: u64,
}

impl Base {
    /// Reads the headers of all files.
    ///
    /// # Errors
    /// The path holds no model, or its files are damaged or do not belong together.
    pub fn open(path: &Path) -> Result<Self> {
        let is_folder = path.is_dir();
        let folder = if is_folder { path } else { path.parent().unwrap_or(Path::new("")) };
        let index = if is_folder { ShardIndex::read(folder)? } else { None };
        let (index, map) = index.map(|index| (index.bytes, index.weight_map)).unzip();
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
        let base = Self { path: path.into(), is_folder, shards, config, index, tied: None, places };
        map.map_or(Ok(()), |map| base.check_map(&map))?;
        Ok(base)
    }

    /// Returns the folder, if the model is one.
    pub fn folder(&self) -> Option<&Path> {
        self.is_folder.then_some(&self.path)
    }

    /// Returns the path for messages.
    pub fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Returns the bytes of all shards, as they are written.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(Shard::out_len).sum()
    }

    /// Appends a copy of a tensor, under another name, to the shard that has it.
    ///
    /// # Errors
    /// The model has no such tensor, or its index is malformed.
    pub fn append_copy(&mut self, tensor: &str, name: &str) -> Result<()> {
        let Some((i, j)) = self.find(tensor) else {
            return Err(Error::data(format!("{} has no tensor {}", self.path(), text::name(tensor))));
        };
        let index = self
            .index
            .as_deref()
            .map(|index| append::index(index, name, &self.shards[i].name, self.shards[i].tensors[j].len));
        let index = index.transpose().map_err(|e| Error::data(format!("{}: {INDEX}: {e}", self.path())))?;
        self.index = index.or(self.index.take());
        self.shards[i].append_copy(j, name);
        self.places.insert(name.into(), (i, self.shards[i].tensors.len() - 1));
        Ok(())
    }

    /// Returns the index of a tensor's shard, and the tensor's index in it.
    pub fn find(&self, tensor: &str) -> Option<(usize, usize)> {
        self.places.get(tensor).copied()
    }

    /// Fails if a tensor is not in the shard that the index names.
    fn check_map(&self, map: &BTreeMap<String, String>) -> Result<()> {
        for (tensor, file) in map {
            if self.find(tensor).is_none_or(|(shard, _)| self.shards[shard].name != *file) {
                return Err(Error::data(format!(
                    "{}: {INDEX} puts tensor {} into {}, which does not have it",
                    self.path(),
                    text::name(tensor),
                    text::name(file)
                )));
            }
        }
        Ok(())
    }
}

impl BaseModel for Base {
    fn name(&self) -> String {
        self.path().to_string()
    }

    fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.shards.iter().flat_map(|shard| &shard.tensors).map(|tensor| tensor.name.as_str())
    }

    fn tensor(&self, name: &str) -> Option<(Dtype, &[usize])> {
        let (shard, tensor) = self.find(name)?;
        let TensorEntry { dtype, shape, .. } = &self.shards[shard].tensors[tensor];
        Some((*dtype, shape))
    }

    fn is_transposed(&self, module: &str) -> Option<bool> {
        self.config.as_ref().map(|config| config.transposed(module))
    }

    fn is_tied(&self) -> Result<bool> {
        self.tied.map_or_else(|| self.config.as_ref().map_or(Ok(false), Config::tied), Ok)
    }
}

/// Returns the place of every tensor.
///
/// # Errors
/// Two shards have a tensor of one name.
fn places(shards: &[Shard]) -> Result<HashMap<String, (usize, usize)>> {
    let mut places = HashMap::new();
    for (i, shard) in shards.iter().enumerate() {
        for (j, tensor) in shard.tensors.iter().enumerate() {
            if let Some((other, _)) = places.insert(tensor.name.clone(), (i, j)) {
                return Err(Error::data(format!(
                    "tensor {} is in {} and in {}, but a tensor has one place",
                    text::name(&tensor.name),
                    shards[other].name,
                    shard.name
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
            tensors.push(TensorEntry {
                dtype: info.dtype,
                shape: info.shape.clone(),
                len: (end - start) as u64,
                name,
            });
        }
        let len = input.len();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { path, name, header, len, tensors, appended: None })
    }

    /// Returns the first bytes of the output.
    pub fn out_header(&self) -> &[u8] {
        self.appended.as_ref().map_or(&self.header, |appended| &appended.header)
    }

    /// Returns the length of the output.
    pub fn out_len(&self) -> u64 {
        let data: u64 = self.tensors.iter().map(|tensor| tensor.len).sum();
        self.out_header().len() as u64 + data
    }

    /// Returns the position of a tensor's bytes in the file.
    pub fn position(&self, tensor: usize) -> u64 {
        match &self.appended {
            Some(appended) if tensor + 1 == self.tensors.len() => appended.at,
            _ => {
                let before: u64 = self.tensors[..tensor].iter().map(|tensor| tensor.len).sum();
                self.header.len() as u64 + before
            }
        }
    }

    /// Appends a copy of a tensor, under another name.
    fn append_copy(&mut self, tensor: usize, name: &str) {
        let TensorEntry { dtype, shape, len, .. } = &self.tensors[tensor];
        let start = self.len - self.header.len() as u64;
        let header = append::header(&self.header, name, &dtype.to_string(), shape, (start, start + len));
        let copy = TensorEntry { name: name.into(), dtype: *dtype, shape: shape.clone(), len: *len };
        self.appended = Some(Appended { header, at: self.position(tensor) });
        self.tensors.push(copy);
    }
}
