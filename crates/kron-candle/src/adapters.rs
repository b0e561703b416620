//! [`Adapters`]: all adapters of one model, and their files.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Result, Tensor, Var, bail};
use kron_adapter::{Adapter, IfExists, Layer, OutputFormat, TrainedTensor};

use crate::error::of_adapter;
use crate::op;
use crate::trainable_delta::TrainableDelta;

/// All adapters of one model.
///
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::{VarBuilder, VarMap};
/// use kron_candle::{IfExists, Inject, KronShape, ScaleRule, Scaling, Split, OutputFormat};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let weights = VarMap::new();
/// # let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
/// let inject = Inject::new(&["q_proj"], 7, |_, dims| {
///     Ok((KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 8)?, Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?))
/// })?;
/// let _q = inject.linear(96, 64, true, vb.pp("layer.0.q_proj"))?;
/// let adapters = inject.finish()?;
/// assert_eq!(adapters.vars().len(), 1); // for an optimizer
///
/// let (file, lora) = (folder.path().join("adapter.safetensors"), folder.path().join("lora"));
/// adapters.save(&file, IfExists::Refuse)?;
/// adapters.save_as(&lora, OutputFormat::Lora(Default::default()), IfExists::Refuse)?; // a PEFT folder
/// assert_eq!(kron_candle::load(&file)?, adapters.to_adapter()?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Adapters {
    deltas: Vec<TrainableDelta>,
    targets: Vec<String>,
    /// Metadata of the adapter file.
    metadata: BTreeMap<String, String>,
    /// Tensors of the adapter file beside the factors.
    trained_tensors: Vec<TrainedTensor>,
}

impl Adapters {
    pub(crate) const fn new(
        deltas: Vec<TrainableDelta>,
        targets: Vec<String>,
        metadata: BTreeMap<String, String>,
        trained_tensors: Vec<TrainedTensor>,
    ) -> Self {
        Self { deltas, targets, metadata, trained_tensors }
    }

    /// Returns the adapters in the order of the model's layers, a term of a sum after the other.
    pub fn deltas(&self) -> &[TrainableDelta] {
        &self.deltas
    }

    /// Returns the variable θ of each adapter.
    pub fn vars(&self) -> Vec<Var> {
        self.deltas.iter().map(|d| d.theta().clone()).collect()
    }

    /// Returns the number of trained parameters.
    pub fn params(&self) -> usize {
        self.deltas.iter().map(|d| d.op().shape.params()).sum()
    }

    /// Copies the current factors, and the trained tensors of the adapter that [`Inject::trained`](crate::Inject::trained)
    /// was given.
    ///
    /// # Errors
    /// The model has no adapter.
    pub fn to_adapter(&self) -> Result<Adapter> {
        let layers = self.deltas.iter().map(TrainableDelta::to_layer).collect::<Result<Vec<Layer>>>()?;
        Adapter::new(layers)
            .and_then(|adapter| adapter.with_target_modules(self.targets.clone()))
            .and_then(|adapter| adapter.with_metadata(self.metadata.clone()))
            .and_then(|adapter| adapter.with_trained_tensors(self.trained_tensors.clone()))
            .map_err(of_adapter)
    }

    /// Replaces the weight `MODULE.weight` of each adapted module by W + ΔW, in the dtype of W, rounded once.
    ///
    /// All weights are replaced, or none.
    ///
    /// ```
    /// use std::collections::HashMap;
    ///
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::VarBuilder;
    /// use kron_candle::{Inject, Method};
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let weight = Tensor::ones((64, 96), DType::F32, &Device::Cpu)?;
    /// let mut tensors = HashMap::from([("0.q_proj.weight".to_owned(), weight)]);
    /// let inject = Inject::of_method(&["q_proj"], 1, Method::Lora { rank: 4 }, 8.0)?;
    /// let vb = VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
    /// let layer = inject.linear(96, 64, false, vb.pp("0.q_proj"))?;
    /// inject.finish()?.merge_into(&mut tensors)?; // of a new adapter, so that nothing changes
    /// assert_eq!(tensors["0.q_proj.weight"].to_vec2::<f32>()?, vec![vec![1.0; 96]; 64]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A weight is missing or has another shape, dtype or device than its adapter takes.
    pub fn merge_into(&self, tensors: &mut HashMap<String, Tensor>) -> Result<()> {
        let merged = |terms: &[TrainableDelta]| {
            let name = format!("{}.weight", terms[0].module());
            let (Some(weight), shape) = (tensors.get(&name), terms[0].op().shape) else {
                bail!("the tensors have no {name}, which an adapter changes");
            };
            if weight.dims() != [shape.d_out(), shape.d_in()] {
                bail!("{name} is {:?}, but its adapter is {shape}", weight.shape());
            }
            Ok((name, op::merge(terms, weight)?))
        };
        let sums = self.deltas.chunk_by(|one, next| one.module() == next.module());
        let merged = sums.map(merged).collect::<Result<Vec<_>>>()?;
        tensors.extend(merged);
        Ok(())
    }

    /// Writes the adapter file of `docs/FORMAT.md`, atomically.
    ///
    /// # Errors
    /// A factor is NaN or infinite, or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>, existing: IfExists) -> Result<()> {
        self.to_adapter()?.write(path, existing).map_err(of_adapter)
    }

    /// Writes a PEFT folder or a LyCORIS file, atomically.
    ///
    /// [`OutputFormat::PeftLokr`] copies the factors bit for bit. [`OutputFormat::Lora`] writes a LoRA with the same ΔW, whose products
    /// A·B are rounded once to float32.
    ///
    /// # Errors
    /// The format cannot express a layer, a factor is NaN or infinite, the name is taken, or the file cannot be
    /// written. [`IfExists::Replace`] replaces a folder only if it holds an adapter and nothing else.
    pub fn save_as(&self, out: impl AsRef<Path>, to: OutputFormat, existing: IfExists) -> Result<()> {
        kron_adapter::write(&self.to_adapter()?, to, out, existing).map_err(of_adapter)
    }
}
