//! Reading of a model's files, and building of a body from its weights.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use kron_adapter::gguf::{BlockType, Blocks};
use kron_adapter::io::Input;
use kron_adapter::model_files::{CONFIG, MAX_CONFIG_BYTES, SINGLE, ShardIndex};
use kron_candle::Inject;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::bert::{Bert, BertConfig};
use super::body::Body;
use super::gguf;
use super::layers::{BlocksByName, Layers};
use super::llama::Llama;
use super::llama_config::LlamaConfig;
use super::llama2c;
use crate::compute::Compute;
use crate::error::{Result, file};
use crate::files::{self, MAX_WEIGHTS};

/// Configuration of a body of either kind.
#[derive(Clone, Debug)]
pub enum Config {
    /// Encoder.
    Bert(BertConfig),
    /// Decoder.
    Llama(LlamaConfig),
}

/// Paths of a model's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Hugging Face folder, GGUF file, or llama2.c file.
    pub model: PathBuf,
    /// `tokenizer.json`, the GGUF file itself, or the first `tok*.bin` beside the model.
    pub tokenizer: PathBuf,
}

impl Files {
    /// Finds the files of the model at a path: a Hugging Face folder, a `.gguf` file, or a `.bin` file of
    /// llama2.c.
    ///
    /// # Errors
    /// The path has no model or no tokenizer.
    pub fn find(model: &Path) -> Result<Self> {
        if model.is_dir() {
            let tokenizer = model.join("tokenizer.json");
            return match tokenizer.is_file() && model.join(CONFIG).is_file() {
                true => Ok(Self { model: model.into(), tokenizer }),
                false => {
                    Err(file(model, "has no config.json and tokenizer.json, which every model's folder has"))
                }
            };
        }
        if files::is_gguf(model) && model.is_file() {
            return Ok(Self { model: model.into(), tokenizer: model.into() });
        }
        let folder = model.parent().filter(|_| model.is_file());
        let folder = folder
            .ok_or_else(|| file(model, "is neither a folder nor a file, but a model is one of them"))?;
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let entries = std::fs::read_dir(folder).map_err(|e| file(folder, e))?;
        let mut names: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        names.sort();
        let is_tokenizer = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("tok") && name.ends_with(".bin")
        };
        match names.into_iter().find(is_tokenizer) {
            Some(tokenizer) => Ok(Self { model: model.into(), tokenizer }),
            None => Err(file(model, "has no tok*.bin beside it, which is its tokenizer")),
        }
    }
}

/// Tensors of a pretrained model, read once and shared by all bodies built from them.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Configuration of the model.
    pub config: Config,
    tensors: HashMap<String, Tensor>,
    /// Matrices that stay as their file has them.
    blocks: BlocksByName,
    device: Device,
    dtype: DType,
}

impl Weights {
    /// Reads a model in float32, on the CPU.
    ///
    /// # Errors
    /// As [`Weights::read_for`].
    pub fn read(files: &Files) -> Result<Self> {
        Self::read_for(files, Compute::default())
    }

    /// Reads a model onto a device, in the precision of its computations.
    ///
    /// For float32 on the CPU, the matrices of a decoder stay as its files have them: in blocks of a GGUF file, or in
    /// bf16 or f16. For anything else they are converted.
    ///
    /// # Errors
    /// A file is missing or malformed, the kind of model is not supported, or the device cannot be opened.
    pub fn read_for(files: &Files, compute: Compute) -> Result<Self> {
        let (device, dtype) = (compute.device.open()?, compute.precision.dtype());
        let convert = |tensor: &Tensor| tensor.to_dtype(dtype)?.to_device(&device);
        let keeps = device.is_cpu() && dtype == DType::F32;
        if files::is_gguf(&files.model) {
            let (mut tensors, mut blocks) = (HashMap::new(), BlocksByName::new());
            let config = gguf::read(&files.model, |name, matrix| {
                match name_in_body(name) {
                    Some(name) if keeps && matrix.is_quantised() => {
                        blocks.insert(name, Arc::new(matrix.blocks));
                    }
                    Some(name) => {
                        tensors.insert(name, convert(&matrix.dequantised()?)?);
                    }
                    None => {}
                }
                Ok(())
            })?;
            return Ok(Self { config: Config::Llama(config), tensors, blocks, device, dtype });
        }
        if files.model.is_file() {
            let (config, mut tensors) = llama2c::read(&files.model)?;
            tensors
                .values_mut()
                .try_for_each(|tensor| convert(tensor).map(|converted| *tensor = converted))?;
            return Ok(Self { tensors, ..Self::empty(Config::Llama(config), device, dtype) });
        }
        let config = read_config(&files.model.join(CONFIG))?;
        let keeps = keeps && matches!(config, Config::Llama(_));
        let (mut tensors, mut blocks) = (HashMap::new(), BlocksByName::new());
        for part in shards(&files.model)? {
            read_shard(&part, |name, stored| {
                let Some(name) = name_in_body(name) else { return Ok(()) };
                if tensors.contains_key(&name) || blocks.contains_key(&name) {
                    let message = format!("has two tensors {name:?}, but every name is that of one tensor");
                    return Err(file(&files.model, message));
                }
                match (stored.block_type(), stored.shape) {
                    (Some(block_type), &[rows, columns]) if keeps => {
                        blocks.insert(name, Arc::new(Blocks::new(block_type, rows, columns, stored.bytes)?));
                    }
                    _ => {
                        tensors.insert(name, convert(&stored.tensor()?)?);
                    }
                }
                Ok(())
            })?;
        }
        Ok(Self { config, tensors, blocks, device, dtype })
    }

    fn empty(config: Config, device: Device, dtype: DType) -> Self {
        Self { config, tensors: HashMap::new(), blocks: HashMap::new(), device, dtype }
    }

    /// Wraps float32 tensors on the CPU.
    pub fn new(config: Config, tensors: HashMap<String, Tensor>) -> Self {
        Self { tensors, ..Self::empty(config, Device::Cpu, DType::F32) }
    }

    /// Copies all tensors into variables, dequantised, for full fine-tuning; returns the weights and the variables by name.
    ///
    /// # Errors
    /// candle fails.
    pub fn trained(&self) -> Result<(Self, BTreeMap<String, Var>)> {
        let copy =
            |(name, tensor): (&String, &Tensor)| Ok((name.clone(), Var::from_tensor(&tensor.copy()?)?));
        let mut vars: BTreeMap<String, Var> = self.tensors.iter().map(copy).collect::<Result<_>>()?;
        for (name, blocks) in &self.blocks {
            vars.insert(name.clone(), Var::from_tensor(&gguf::dequantised(blocks)?)?);
        }
        let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        Ok((Self { tensors, blocks: HashMap::new(), ..self.clone() }, vars))
    }

    /// Calls `make` with a builder over these tensors.
    ///
    /// # Errors
    /// `make` fails.
    pub fn with<T>(&self, make: impl FnOnce(VarBuilder) -> Result<T>) -> Result<T> {
        make(VarBuilder::from_tensors(self.tensors.clone(), self.dtype, &self.device))
    }

    /// Returns the device of the tensors and of all trained parameters.
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Returns true if the model has a tensor of this name, in which leading components may be more or fewer than
    /// in the model's, or an output head that is its embedding.
    pub fn has_a(&self, name: &str) -> bool {
        let ends = |long: &str, short: &str| {
            long.strip_suffix(short).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let mut own = self.tensors.keys().chain(self.blocks.keys());
        ends(name, "lm_head.weight") || own.any(|own| ends(own, name) || ends(name, own))
    }

    /// Returns the number of elements of all tensors.
    pub fn elements(&self) -> u128 {
        let blocks = self.blocks.values().map(|blocks| blocks.rows() as u128 * blocks.columns() as u128);
        self.tensors.values().map(|tensor| tensor.elem_count() as u128).chain(blocks).sum()
    }

    /// Returns the number of token ids.
    pub const fn vocabulary(&self) -> usize {
        match &self.config {
            Config::Bert(config) => config.vocab_size,
            Config::Llama(config) => config.vocab_size,
        }
    }

    /// Returns the width of a hidden state.
    pub const fn hidden(&self) -> usize {
        match &self.config {
            Config::Bert(config) => config.hidden_size,
            Config::Llama(config) => config.hidden_size,
        }
    }

    /// Returns the longest text in tokens.
    pub fn positions(&self) -> usize {
        match &self.config {
            Config::Bert(config) => config.max_position_embeddings,
            Config::Llama(config) => config.positions(),
        }
    }
}

/// Builds a body over these weights, with adapters from `inject`.
///
/// # Errors
/// A tensor is missing or has another shape, or `inject` fails.
pub fn build(weights: &Weights, inject: &Inject) -> Result<Box<dyn Body>> {
    weights.with(|vb| {
        Ok(match &weights.config {
            Config::Bert(config) => Box::new(Bert::new(config, inject, vb)?) as Box<dyn Body>,
            Config::Llama(config) => {
                let layers = Layers::new(inject, vb, &weights.blocks);
                Box::new(Llama::new(config, &layers, weights.device())?)
            }
        })
    })
}

fn read_config(path: &Path) -> Result<Config> {
    #[derive(Deserialize)]
    struct Kind {
        model_type: String,
    }
    fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
        serde_json::from_str(text).map_err(|e| file(path, e))
    }
    let text = files::text(path, MAX_CONFIG_BYTES)?;
    let Kind { model_type } = parse(path, &text)?;
    let (config, checked) = match model_type.as_str() {
        "bert" | "distilbert" => {
            let config: BertConfig = parse(path, &text)?;
            let checked = config.check();
            (Config::Bert(config), checked)
        }
        "llama" | "mistral" => {
            let config: LlamaConfig = parse(path, &text)?;
            let checked = config.check();
            (Config::Llama(config), checked)
        }
        other => {
            let known = "bert, distilbert, llama and mistral are known";
            return Err(file(path, format!("is of model type {other:?}, but {known}")));
        }
    };
    checked.map(|()| config).map_err(|e| file(path, e))
}

/// Returns the name of a checkpoint's tensor in a body; `None` for a head's tensor.
fn name_in_body(name: &str) -> Option<String> {
    const HEADS: [&str; 6] = ["pooler.", "cls.", "classifier.", "pre_classifier.", "vocab_", "qa_outputs."];
    // Some checkpoints have the encoder one level deeper.
    let name = ["bert.", "distilbert."].iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name);
    let is_head = HEADS.iter().any(|head| name.starts_with(head));
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

/// Reads the tensors of floating-point values of one file, one after another.
fn read_shard(path: &Path, mut take: impl FnMut(&str, Stored) -> Result<()>) -> Result<()> {
    let mut input = Input::open(path)?;
    if input.len() > MAX_WEIGHTS {
        return Err(file(path, format!("is {} bytes long, but the limit is {MAX_WEIGHTS}", input.len())));
    }
    let (_, layout) = input.layout()?;
    for name in layout.tensors.offset_keys() {
        let Some(info) = layout.tensors.info(&name) else { continue };
        let (start, end) = info.data_offsets;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a decoder whose file is in bf16: its matrices stay so, and are float32 where they are trained.
    #[test]
    fn half_precision_matrices_stay_as_they_are() -> Result<()> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/llama3");
        let weights = Weights::read(&Files::find(Path::new(folder))?)?;
        assert!(weights.blocks.values().all(|blocks| blocks.block_type() == BlockType::Bf16));
        assert!(weights.tensors.values().all(|tensor| tensor.rank() == 1));
        let (trained, vars) = weights.trained()?;
        assert_eq!(vars.len(), weights.blocks.len() + weights.tensors.len());
        assert_eq!(trained.elements(), weights.elements());
        assert!(trained.tensors.values().all(|tensor| tensor.dtype() == DType::F32));
        Ok(())
    }
}
