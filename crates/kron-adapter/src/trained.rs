//! [`TrainedTensor`]: a tensor that was trained beside the factors.

use std::collections::HashSet;

use crate::dotted_path::check_path;
use crate::elements::first_not_finite;
use crate::text::shown;
use crate::{Error, Result};

/// Most dimensions of a trained tensor.
pub(crate) const MAX_DIMS: usize = 8;

/// Float32 tensor trained beside the factors, such as the weight of a classification head.
///
/// Its name is the parameter's in the model, `classifier.weight`. The tensor replaces the model's of that name, or
/// some of its rows, or belongs to a module that the pretrained model lacks; it is no part of any ΔW.
///
/// ```
/// use kron_adapter::TrainedTensor;
///
/// let bias = TrainedTensor::new("classifier.bias", [3], vec![0.5, -1.0, 0.25])?;
/// assert_eq!((bias.name(), bias.shape(), bias.values().len()), ("classifier.bias", &[3][..], 3));
/// # Ok::<(), kron_adapter::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedTensor {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
    rows: Option<Vec<usize>>,
}

impl TrainedTensor {
    /// Makes a tensor of row-major values; an empty shape is one value.
    ///
    /// # Errors
    /// Fails unless the name has the form of a module's, see [`Layer::new`](crate::Layer::new), the shape has at most
    /// 8 dimensions of at least 1, and the values are as many as it needs.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Result<Self> {
        let (name, shape) = (name.into(), shape.into());
        check_path("trained tensor", &name)?;
        check_shape(&shape).map_err(|e| e.about(format_args!("trained tensor {name}")))?;
        let product = shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
        if product != Some(values.len()) {
            return Err(Error::data(format!(
                "trained tensor {name} has {} values, but its shape is {shape:?}",
                values.len()
            )));
        }
        Ok(Self { name, shape, values, rows: None })
    }

    /// Makes a tensor of rows of the model's, such as those of added tokens in an embedding; `rows` has their
    /// indices there.
    ///
    /// # Errors
    /// Fails as [`Self::new`] does, and unless the shape is rows × width and the indices are different.
    pub fn of_rows(
        name: impl Into<String>,
        rows: Vec<usize>,
        width: usize,
        values: Vec<f32>,
    ) -> Result<Self> {
        let tensor = Self::new(name, [rows.len(), width], values)?;
        let different: HashSet<usize> = rows.iter().copied().collect();
        match different.len() == rows.len() {
            true => Ok(Self { rows: Some(rows), ..tensor }),
            false => Err(Error::data(format!("trained tensor {} has two rows of one index", tensor.name))),
        }
    }

    /// Name of the parameter in the model.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Dimensions, the slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// The values, row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
    /// Indices of the rows of the model's tensor that these take the place of; `None` for a whole tensor.
    pub fn rows(&self) -> Option<&[usize]> {
        self.rows.as_deref()
    }
    /// Returns the same tensor under another name.
    ///
    /// # Errors
    /// Fails if the name is not a dotted path.
    pub fn renamed(&self, name: impl Into<String>) -> Result<Self> {
        let tensor = Self::new(name, self.shape.clone(), self.values.clone())?;
        Ok(Self { rows: self.rows.clone(), ..tensor })
    }

    /// Fails on a value that is NaN or infinite.
    pub(crate) fn check_finite(&self) -> Result<()> {
        match first_not_finite(&self.values) {
            None => Ok(()),
            Some(at) => Err(Error::data(format!(
                "value {at} of {} is {}, but every value of a trained tensor is finite",
                self.name, self.values[at]
            ))),
        }
    }
}

/// Fails on a shape that no trained tensor has.
pub(crate) fn check_shape(shape: &[usize]) -> Result<()> {
    if shape.len() > MAX_DIMS {
        return Err(Error::data(format!(
            "has {} dimensions, but at most {MAX_DIMS} are allowed",
            shape.len()
        )));
    }
    match shape.contains(&0) {
        true => Err(Error::data(format!("is {shape:?}, but every dimension is at least 1"))),
        false => Ok(()),
    }
}

/// Sorts tensors by name, and fails on two of one name and on one in the module of a layer, other than its bias.
pub(crate) fn sorted(
    mut tensors: Vec<TrainedTensor>,
    has_layer: impl Fn(&str) -> bool,
) -> Result<Vec<TrainedTensor>> {
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(Error::data(format!("trained tensor {} occurs twice", shown(&pair[0].name))));
    }
    for tensor in &tensors {
        let adapted = modules(&tensor.name).find(|module| has_layer(module));
        if let Some(module) = adapted.filter(|module| tensor.name[module.len()..] != *".bias") {
            return Err(Error::data(format!(
                "trained tensor {} lies in module {}, which has a layer: a module is adapted or trained, not both",
                shown(&tensor.name),
                shown(module)
            )));
        }
    }
    Ok(tensors)
}

/// Returns the modules that a tensor lies in, the outermost first, and its own name, which a module may have too.
pub(crate) fn modules(name: &str) -> impl Iterator<Item = &str> {
    let ends = name.match_indices('.').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| &name[..end])
}
