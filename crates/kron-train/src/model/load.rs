//! A path to a body: which files make a model, and which kind it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use kron_candle::Inject;
use serde::Deserialize;

use super::{Bert, BertConfig, Body, Llama, LlamaConfig, stories};
use crate::compute::Compute;
use crate::error::{Result, file};

/// Shapes of a body of either kind.
#[derive(Clone, Debug)]
pub enum Config {
    /// An encoder.
    Bert(BertConfig),
    /// A decoder.
    Llama(LlamaConfig),
}

/// Where a model's parts lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The folder, or the file of llama2.c.
    pub model: PathBuf,
    /// `tokenizer.json`, or the first `tok*.bin` beside the model.
    pub tokenizer: PathBuf,
}

impl Files {
    /// The parts of the model at a path: a folder of Hugging Face, or a `.bin` of llama2.c.
    ///
    /// # Errors
    /// A path without a model or a tokenizer.
    pub fn find(model: &Path) -> Result<Self> {
        if model.is_dir() {
            let tokenizer = model.join("tokenizer.json");
            return match tokenizer.is_file() && model.join("config.json").is_file() {
                true => Ok(Self { model: model.into(), tokenizer }),
                false => {
                    Err(file(model, "has no config.json and tokenizer.json, which every model's folder has"))
                }
            };
        }
        let folder = model.parent().filter(|_| model.is_file());
        let folder =
            folder.ok_or_else(|| file(model, "is no folder and no file, but a model is one of them"))?;
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

/// A pretrained model's tensors, read once and shared by every body built from them.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Shapes.
    pub config: Config,
    tensors: HashMap<String, Tensor>,
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

    /// Reads a model onto a device, in the precision that it computes in.
    ///
    /// # Errors
    /// Files that are missing or broken, a kind of model that is not known here,
    /// and a device that is not there.
    pub fn read_for(files: &Files, compute: Compute) -> Result<Self> {
        let (device, dtype) = (compute.device.open()?, compute.precision.dtype());
        let place = |tensor: &Tensor| tensor.to_dtype(dtype)?.to_device(&device);
        if files.model.is_file() {
            let (config, mut tensors) = stories::read(&files.model)?;
            tensors.values_mut().try_for_each(|tensor| place(tensor).map(|placed| *tensor = placed))?;
            return Ok(Self { config: Config::Llama(config), tensors, device, dtype });
        }
        let config = read_config(&files.model.join("config.json"))?;
        let mut tensors = HashMap::new();
        for part in shards(&files.model)? {
            let read = candle_core::safetensors::load(&part, &Device::Cpu).map_err(|e| file(&part, e))?;
            for (name, tensor) in read.into_iter().filter(|(_, t)| t.dtype().is_float()) {
                if let Some(name) = name_here(&name) {
                    tensors.insert(name, place(&tensor)?);
                }
            }
        }
        Ok(Self { config, tensors, device, dtype })
    }

    /// Made-up tensors for a body of these shapes, float32 on the CPU.
    pub fn new(config: Config, tensors: HashMap<String, Tensor>) -> Self {
        Self { config, tensors, device: Device::Cpu, dtype: DType::F32 }
    }

    /// The same with a variable for every tensor, by name: full fine-tuning.
    ///
    /// # Errors
    /// What candle refuses.
    pub fn trained(&self) -> Result<(Self, BTreeMap<String, Var>)> {
        let copy =
            |(name, tensor): (&String, &Tensor)| Ok((name.clone(), Var::from_tensor(&tensor.copy()?)?));
        let vars: BTreeMap<String, Var> = self.tensors.iter().map(copy).collect::<Result<_>>()?;
        let tensors = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        Ok((Self { tensors, ..self.clone() }, vars))
    }

    /// A body made by hand from a builder over these tensors.
    ///
    /// # Errors
    /// What `make` refuses.
    pub fn with<T>(&self, make: impl FnOnce(VarBuilder) -> Result<T>) -> Result<T> {
        make(VarBuilder::from_tensors(self.tensors.clone(), self.dtype, &self.device))
    }

    /// Where the tensors are, and with them what is trained.
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Number of token ids.
    pub const fn vocabulary(&self) -> usize {
        match &self.config {
            Config::Bert(config) => config.vocab_size,
            Config::Llama(config) => config.vocab_size,
        }
    }

    /// Width of a hidden state.
    pub const fn hidden(&self) -> usize {
        match &self.config {
            Config::Bert(config) => config.hidden_size,
            Config::Llama(config) => config.hidden_size,
        }
    }

    /// Longest text in tokens.
    pub fn positions(&self) -> usize {
        match &self.config {
            Config::Bert(config) => config.max_position_embeddings,
            Config::Llama(config) => config.positions(),
        }
    }
}

/// A body over these weights, with adapters from `inject`.
///
/// # Errors
/// A tensor that is missing or of another shape, and what `inject` refuses.
pub fn build(weights: &Weights, inject: &Inject) -> Result<Box<dyn Body>> {
    weights.with(|vb| {
        Ok(match &weights.config {
            Config::Bert(config) => Box::new(Bert::new(config, inject, vb)?) as Box<dyn Body>,
            Config::Llama(config) => Box::new(Llama::new(config, inject, vb)?),
        })
    })
}

fn read_config(path: &Path) -> Result<Config> {
    #[derive(Deserialize)]
    struct Kind {
        model_type: String,
    }
    let text = std::fs::read_to_string(path).map_err(|e| file(path, e))?;
    let Kind { model_type } = serde_json::from_str(&text).map_err(|e| file(path, e))?;
    match model_type.as_str() {
        "bert" | "distilbert" => serde_json::from_str(&text).map(Config::Bert).map_err(|e| file(path, e)),
        "llama" | "mistral" => serde_json::from_str(&text).map(Config::Llama).map_err(|e| file(path, e)),
        other => Err(file(
            path,
            format!("is of model type {other}, but bert, distilbert, llama and mistral are known"),
        )),
    }
}

/// A tensor's name in a body; `None` for heads and what else no body reads.
fn name_here(name: &str) -> Option<String> {
    const HEADS: [&str; 6] = ["pooler.", "cls.", "classifier.", "pre_classifier.", "vocab_", "qa_outputs."];
    // Some checkpoints keep the encoder one level deeper.
    let name = ["bert.", "distilbert."].iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name);
    let is_head = HEADS.iter().any(|head| name.starts_with(head));
    // The first checkpoints were TensorFlow's.
    let name =
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
    (!is_head).then_some(name)
}

/// The files with a folder's weights: those that its index names, else `model.safetensors`,
/// else every safetensors file. Some folders hold the same weights twice, in other formats too.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let (index, single) = (folder.join("model.safetensors.index.json"), folder.join("model.safetensors"));
    if index.is_file() {
        let text = std::fs::read_to_string(&index).map_err(|e| file(&index, e))?;
        let Index { weight_map } = serde_json::from_str(&text).map_err(|e| file(&index, e))?;
        let names: BTreeSet<String> = weight_map.into_values().collect();
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    if single.is_file() {
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
