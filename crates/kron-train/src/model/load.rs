//! Reading of a model's files, and building of a body from its weights.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use kron_adapter::model_files::CONFIG;
use kron_candle::models::{BlocksByName, Body, Config, Layers};
use kron_candle::{Inject, Operands};

use super::gguf;
use super::reader::{Reader, round_matrices};
use crate::compute::Compute;
use crate::error::{Error, Result, file, invalid};
use crate::files;

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
    pub(super) tensors: HashMap<String, Tensor>,
    /// Matrices that stay as their file has them.
    pub(super) blocks: BlocksByName,
    pub(super) device: Device,
    pub(super) dtype: DType,
    /// Numbers that products with these matrices multiply.
    pub(super) operands: Operands,
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
    /// For float32 activations on the CPU, the matrices of a decoder stay as its files have them: in blocks of a GGUF
    /// file, or in bf16 or f16. For anything else they are converted.
    ///
    /// # Errors
    /// A file is missing or malformed, the kind of model is not supported, the device cannot be opened, or bf16 is
    /// asked for on the CPU for an encoder.
    pub fn read_for(files: &Files, compute: Compute) -> Result<Self> {
        Self::read_without(files, compute, BlocksByName::new())
    }

    /// Reads a model but for some matrices, which are given.
    ///
    /// # Errors
    /// As [`Weights::read_for`].
    pub(crate) fn read_without(files: &Files, compute: Compute, given: BlocksByName) -> Result<Self> {
        let (device, path) = (compute.device.open()?, files.model.as_path());
        let (tensors, blocks) = (HashMap::new(), BlocksByName::new());
        let mut reader = Reader { tensors, blocks, given, device, dtype: compute.dtype() };
        let config = reader.read(path)?;
        let operands = compute.operands();
        if reader.device.is_cpu() && operands == Operands::Bf16 {
            if !config.is_decoder() {
                let message = "compute.precision is bf16, but on the CPU that is for decoders, not encoders";
                return Err(invalid(message));
            }
            round_matrices(&mut reader.tensors, &mut reader.blocks)?;
        }
        let Reader { tensors, blocks, device, dtype, .. } = reader;
        Ok(Self { config, tensors, blocks, device, dtype, operands })
    }

    fn empty(config: Config) -> Self {
        let (device, dtype, operands) = (Device::Cpu, DType::F32, Operands::Float32);
        Self { config, tensors: HashMap::new(), blocks: HashMap::new(), device, dtype, operands }
    }

    /// Wraps float32 tensors on the CPU.
    pub fn new(config: Config, tensors: HashMap<String, Tensor>) -> Self {
        Self { tensors, ..Self::empty(config) }
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
    pub fn with<T, E: Into<Error>>(&self, make: impl FnOnce(VarBuilder) -> Result<T, E>) -> Result<T> {
        make(VarBuilder::from_tensors(self.tensors.clone(), self.dtype, &self.device)).map_err(Into::into)
    }

    /// Returns the device of the tensors and of all trained parameters.
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the number of elements of all tensors.
    pub fn elements(&self) -> u128 {
        let blocks = self.blocks.values().map(|blocks| blocks.rows() as u128 * blocks.columns() as u128);
        self.tensors.values().map(|tensor| tensor.elem_count() as u128).chain(blocks).sum()
    }

    /// Returns the number of token ids.
    pub const fn vocabulary(&self) -> usize {
        self.config.vocabulary()
    }

    /// Returns the width of a hidden state.
    pub const fn hidden(&self) -> usize {
        self.config.hidden()
    }

    /// Returns the longest text in tokens.
    pub fn positions(&self) -> usize {
        self.config.positions()
    }
}

/// Builds a body over these weights, with adapters from `inject`.
///
/// # Errors
/// A tensor is missing or has another shape, or `inject` fails.
pub fn build(weights: &Weights, inject: &Inject) -> Result<Box<dyn Body>> {
    weights.with(|vb| {
        weights.config.build(&Layers::new(inject, vb).with_blocks(&weights.blocks, weights.operands))
    })
}

#[cfg(test)]
mod tests {
    use kron_adapter::gguf::BlockType;

    use super::*;
    use crate::compute::Precision;

    fn read(model: &str, precision: Precision) -> Result<Weights> {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(model);
        let files = Files { tokenizer: model.clone(), model };
        Weights::read_for(&files, Compute { precision, ..Compute::default() })
    }

    /// Reads a decoder whose file is in bf16: its matrices stay so, and are float32 where they are trained.
    #[test]
    fn half_precision_matrices_stay_as_they_are() -> Result<()> {
        let weights = read("llama3", Precision::F32)?;
        assert!(weights.blocks.values().all(|blocks| blocks.block_type() == BlockType::Bf16));
        assert!(weights.tensors.values().all(|tensor| tensor.rank() == 1));
        let (trained, vars) = weights.trained()?;
        assert_eq!(vars.len(), weights.blocks.len() + weights.tensors.len());
        assert_eq!(trained.elements(), weights.elements());
        assert!(trained.tensors.values().all(|tensor| tensor.dtype() == DType::F32));
        Ok(())
    }

    #[test]
    fn bf16_rounds_the_matrices_of_a_decoder() -> Result<()> {
        assert!(read("llama", Precision::F32)?.blocks.is_empty());
        let weights = read("llama", Precision::Bf16)?;
        assert_eq!(weights.operands, Operands::Bf16);
        assert!(weights.blocks.values().all(|blocks| blocks.block_type() == BlockType::Bf16));
        assert!(weights.tensors.values().all(|tensor| tensor.rank() == 1 && tensor.dtype() == DType::F32));
        let refused = read("bert", Precision::Bf16).expect_err("an encoder").to_string();
        assert!(refused.contains("for decoders, not encoders"), "{refused}");
        Ok(())
    }
}
