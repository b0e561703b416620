//! Tensors of the model that an adapter changes beside its layers: biases and norms.

use kron_core::Dtype;

use crate::elements::element_dtype;
use crate::{Result, Tensors};

/// Effect of a change on the model's tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ChangeKind {
    /// The values are added, multiplied by this scale.
    Add(f32),
    /// The tensor stays: the values are a copy that has to equal it.
    Copy,
}

/// Change of one tensor of the model.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorChange {
    source: String,
    module: String,
    parameter: String,
    shape: Vec<usize>,
    values: Vec<f32>,
    dtype: Option<Dtype>,
    kind: ChangeKind,
}

impl TensorChange {
    /// Reads the tensor `source` of an adapter's file, a change of `module.parameter`.
    pub(super) fn read(
        tensors: &Tensors,
        source: &str,
        (module, parameter): (&str, &str),
        kind: ChangeKind,
    ) -> Result<Self> {
        let info = tensors.info(source)?;
        Ok(Self {
            source: source.into(),
            module: module.into(),
            parameter: parameter.into(),
            shape: info.shape.clone(),
            values: tensors.finite_f32(source, "a changed tensor")?,
            dtype: element_dtype(info.dtype),
            kind,
        })
    }

    /// Name in the adapter's file.
    pub fn source(&self) -> &str {
        &self.source
    }
    /// Module of the model.
    pub fn module(&self) -> &str {
        &self.module
    }
    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
    /// Effect on the model's tensor.
    pub const fn kind(&self) -> ChangeKind {
        self.kind
    }
    /// Name of the tensor in the model.
    pub fn tensor(&self) -> String {
        match self.module.as_str() {
            "" => self.parameter.clone(),
            module => format!("{module}.{}", self.parameter),
        }
    }
    /// Dimensions in the adapter's file.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Type of the elements in the adapter's file; `None` for float64.
    pub const fn dtype(&self) -> Option<Dtype> {
        self.dtype
    }
    /// Name of the parameter in its module.
    pub fn parameter(&self) -> &str {
        &self.parameter
    }
    /// Returns the same change of another module.
    pub(crate) fn in_module(self, module: String) -> Self {
        Self { module, ..self }
    }
}
