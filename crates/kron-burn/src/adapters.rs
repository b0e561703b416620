//! [`Adapters`]: a model's adapters and their files.

use std::path::Path;

use burn::module::Module;
use burn::tensor::DType;
use kron_adapter::{Adapter, Error, IfExists, Layer, OutputFormat, Result};
use kron_core::Theta;

use crate::tree::Tree;

/// Adapters of one model: names, shapes and scales. The model has the factors.
///
/// ```
/// use burn::nn::LinearConfig;
/// use burn::tensor::Device;
/// use kron_burn::{IfExists, Kron, KronShape, OutputFormat, ScaleRule, Scaling};
///
/// # fn main() -> kron_burn::Result<()> {
/// # let folder = tempfile::tempdir().expect("a folder");
/// let layers = vec![LinearConfig::new(96, 64).init(&Device::flex())]; // a model with the path `0.weight`
/// let kron = Kron::new(&["0"], 1, |_, dims| {
///     Ok((KronShape::lora(dims, 8)?, Scaling::new(16.0, 8, ScaleRule::AlphaOverR)?))
/// })?;
/// let (layers, adapters) = kron.attach(layers)?;
/// let (file, lora) = (folder.path().join("adapter.safetensors"), folder.path().join("lora"));
/// adapters.save(&layers, &file, IfExists::Refuse)?;
/// adapters.save_as(&layers, &lora, OutputFormat::Lora(Default::default()), IfExists::Refuse)?; // a PEFT folder
/// assert_eq!(kron_burn::load(&file)?, adapters.to_adapter(&layers)?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Adapters {
    /// The adapter as it was attached.
    attached: Adapter,
}

impl Adapters {
    pub(crate) const fn new(attached: Adapter) -> Self {
        Self { attached }
    }

    /// Dotted paths of the adapted modules, in the order of the model's layers.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.attached.layers().iter().map(Layer::module)
    }

    /// Number of trained parameters.
    pub fn params(&self) -> usize {
        self.attached.params()
    }

    /// Copies the model's current factors.
    ///
    /// # Errors
    /// The model has no adapter on one of the modules, or one of another size.
    pub fn to_adapter<M: Module>(&self, model: &M) -> Result<Adapter> {
        let mut thetas = Tree::of(model).thetas;
        let layer = |layer: &Layer| {
            let module = layer.module();
            let theta = thetas.remove(module).ok_or_else(|| {
                Error::usage(format!("the model has no adapter on {module}, which these adapters name"))
            })?;
            let values = theta.cast(DType::F32).into_data().try_to_vec::<f32>();
            let values = values.map_err(|e| Error::usage(format!("θ of {module} cannot be read: {e:?}")))?;
            Layer::new(module, layer.scaling(), Theta::from_vec(*layer.shape(), values)?)
        };
        self.attached.with_layers(self.attached.layers().iter().map(layer).collect::<Result<_>>()?)
    }

    /// Writes the adapter file of `docs/FORMAT.md`, atomically.
    ///
    /// # Errors
    /// As [`Adapters::to_adapter`]; a factor is NaN or infinite, or the file cannot be written.
    pub fn save<M: Module>(&self, model: &M, path: impl AsRef<Path>, existing: IfExists) -> Result<()> {
        self.to_adapter(model)?.write(path, existing)
    }

    /// Writes a PEFT folder or a LyCORIS file, atomically.
    ///
    /// # Errors
    /// As [`Adapters::save`], and the format cannot express a layer.
    pub fn save_as<M: Module>(
        &self,
        model: &M,
        out: impl AsRef<Path>,
        to: OutputFormat,
        existing: IfExists,
    ) -> Result<()> {
        kron_adapter::write(&self.to_adapter(model)?, to, out, existing).map(|_| ())
    }
}

/// Reads an adapter for [`Kron::trained`](crate::Kron::trained): our file, a PEFT folder with LoRA, rsLoRA or LoKr, or
/// a LyCORIS file. Its modules have to be paths in the model of burn.
///
/// # Errors
/// The file or folder is damaged, has an unknown format, or cannot be expressed as ΔW = s·A ⊗ (B·C).
pub fn load(path: impl AsRef<Path>) -> Result<Adapter> {
    let loaded = kron_adapter::read(path)?;
    loaded.check_writable()?;
    Ok(loaded.adapter)
}
