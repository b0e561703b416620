//! Reading of a model's tensors, from any kind of file.

use std::collections::{BTreeSet, HashMap};
use std::mem::take;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use kron_adapter::gguf::{BlockType, Blocks};
use kron_adapter::io::Input;
use kron_adapter::model_files::{CONFIG, MAX_CONFIG_BYTES, SINGLE, ShardIndex};
use kron_candle::models::{BlocksByName, Config};

use super::{gguf, llama2c};
use crate::error::{Error, Result, file};
use crate::files::{self, MAX_WEIGHTS};

/// Reader of a model's tensors, which converts them for a device.
pub(super) struct Reader {
    pub tensors: HashMap<String, Tensor>,
    pub blocks: BlocksByName,
    /// Matrices that need not be read.
    pub given: BlocksByName,
    pub device: Device,
    pub dtype: DType,
}

impl Reader {
    /// Reads the model at a path, and returns its configuration.
    ///
    /// # Errors
    /// A file is missing or malformed, or the kind of model is not supported.
    pub fn read(&mut self, path: &Path) -> Result<Config> {
        if files::is_gguf(path) {
            self.read_gguf(path)
        } else if path.is_file() {
            self.read_llama2c(path)
        } else {
            self.read_folder(path)
        }
    }

    fn read_gguf(&mut self, path: &Path) -> Result<Config> {
        let keeps = self.keeps_matrices();
        let given = take(&mut self.given);
        let is_wanted = |name: &str| name_in_body(name, true).is_some_and(|name| !given.contains_key(&name));
        let config = gguf::read(path, is_wanted, |name, matrix| match name_in_body(name, true) {
            Some(name) if keeps && matrix.is_quantised() => {
                self.blocks.insert(name, Arc::new(matrix.blocks));
                Ok(())
            }
            Some(name) => self.insert(name, &matrix.dequantised()?),
            None => Ok(()),
        })?;
        self.blocks.extend(given);
        Ok(Config::Decoder(config))
    }

    fn read_llama2c(&mut self, path: &Path) -> Result<Config> {
        let (config, tensors) = llama2c::read(path)?;
        let given = take(&mut self.given);
        let mut tensors = tensors.into_iter().filter(|(name, _)| !given.contains_key(name));
        tensors.try_for_each(|(name, tensor)| self.insert(name, &tensor))?;
        self.blocks.extend(given);
        Ok(Config::Decoder(config))
    }

    fn read_folder(&mut self, folder: &Path) -> Result<Config> {
        let config = read_config(&folder.join(CONFIG))?;
        let keeps = self.keeps_matrices() && config.is_decoder();
        let given = take(&mut self.given);
        let is_wanted = |name: &str| {
            name_in_body(name, config.is_decoder()).is_some_and(|name| !given.contains_key(&name))
        };
        for part in shards(folder)? {
            read_shard(&part, is_wanted, |name, stored| {
                let Some(name) = name_in_body(name, config.is_decoder()) else { return Ok(()) };
                if self.tensors.contains_key(&name) || self.blocks.contains_key(&name) {
                    let message = format!("has two tensors {name:?}, but every name is that of one tensor");
                    return Err(file(folder, message));
                }
                match (stored.block_type(), stored.shape) {
                    (Some(block_type), &[rows, columns]) if keeps => {
                        let blocks = Blocks::new(block_type, rows, columns, stored.bytes)?;
                        self.blocks.insert(name, Arc::new(blocks));
                        Ok(())
                    }
                    _ => self.insert(name, &stored.tensor()?),
                }
            })?;
        }
        self.blocks.extend(given);
        Ok(config)
    }

    /// Returns true if matrices may stay as a file has them.
    fn keeps_matrices(&self) -> bool {
        self.device.is_cpu() && matches!(self.dtype, DType::F32)
    }

    fn insert(&mut self, name: String, tensor: &Tensor) -> Result<()> {
        self.tensors.insert(name, tensor.to_dtype(self.dtype)?.to_device(&self.device)?);
        Ok(())
    }
}

/// Rounds the float32 matrices among some tensors to bf16, and moves them to the blocks.
///
/// # Errors
/// candle fails.
pub(super) fn round_matrices(tensors: &mut HashMap<String, Tensor>, blocks: &mut BlocksByName) -> Result<()> {
    for (name, tensor) in tensors.extract_if(|_, tensor| tensor.rank() == 2) {
        let (rows, columns) = tensor.dims2()?;
        let values = tensor.to_dtype(DType::BF16)?.flatten_all()?.to_vec1::<bf16>()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        blocks.insert(name, Arc::new(Blocks::new(BlockType::Bf16, rows, columns, bytes)?));
    }
    Ok(())
}

fn read_config(path: &Path) -> Result<Config> {
    Config::parse(&files::text(path, MAX_CONFIG_BYTES)?).map_err(|e| file(path, Error::from(e)))
}

/// Returns the name of a checkpoint's tensor in a body; `None` for a head's tensor.
fn name_in_body(name: &str, is_decoder: bool) -> Option<String> {
    const HEADS: [&str; 6] = ["pooler.", "cls.", "classifier.", "pre_classifier.", "vocab_", "qa_outputs."];
    const MODERN_BERT_HEADS: [&str; 2] = ["head.", "decoder."];
    // Some checkpoints have the encoder one level deeper.
    let name = if is_decoder { name } else { name.strip_prefix("model.").unwrap_or(name) };
    let name = ["bert.", "distilbert."].iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name);
    let heads = HEADS.iter().chain(MODERN_BERT_HEADS.iter().filter(|_| !is_decoder));
    let is_head = heads.into_iter().any(|head| name.starts_with(head));
    // The earliest checkpoints have TensorFlow's names.
    let name =
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
    (!is_head).then_some(name)
}

/// Lists the weight files of a folder: those of its index, else `model.safetensors`, else all safetensors files.
///
/// Reading all files at once would read some folders' weights twice.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    if let Some(index) = ShardIndex::read(folder)? {
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    let single = folder.join(SINGLE);
    if single.symlink_metadata().is_ok() {
        return Ok(vec![single]);
    }
    let entries = std::fs::read_dir(folder).map_err(|e| file(folder, e))?;
    let mut parts: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    parts.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    parts.sort();
    match parts.is_empty() {
        true => Err(file(folder, "has no safetensors file, which holds a model's weights")),
        false => Ok(parts),
    }
}

/// Tensor of floating-point values, as a file has it.
struct Stored<'a> {
    dtype: DType,
    shape: &'a [usize],
    bytes: Vec<u8>,
}

impl Stored<'_> {
    /// Returns the kind of blocks that its values are, if they take less memory than float32.
    const fn block_type(&self) -> Option<BlockType> {
        match self.dtype {
            DType::BF16 => Some(BlockType::Bf16),
            DType::F16 => Some(BlockType::F16),
            _ => None,
        }
    }

    fn tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_raw_buffer(&self.bytes, self.dtype, self.shape, &Device::Cpu)?)
    }
}

/// Reads the wanted tensors of floating-point values of one file, one after another.
fn read_shard(
    path: &Path,
    is_wanted: impl Fn(&str) -> bool,
    mut take: impl FnMut(&str, Stored) -> Result<()>,
) -> Result<()> {
    let mut input = Input::open(path)?;
    if input.len() > MAX_WEIGHTS {
        return Err(file(path, format!("is {} bytes long, but the limit is {MAX_WEIGHTS}", input.len())));
    }
    let (_, layout) = input.layout()?;
    for name in layout.tensors.offset_keys() {
        let Some(info) = layout.tensors.info(&name) else { continue };
        let (start, end) = info.data_offsets;
        if !is_wanted(&name) {
            input.skip((end - start) as u64)?;
            continue;
        }
        let mut bytes = Vec::new();
        input.append((end - start) as u64, &mut bytes)?;
        if bytes.len() != end - start {
            return Err(file(path, "became shorter while it was read"));
        }
        match DType::try_from(info.dtype) {
            Ok(dtype) if dtype.is_float() => {
                take(&name, Stored { dtype, shape: &info.shape, bytes })?;
            }
            _ => {}
        }
    }
    Ok(())
}
