//! Places of what an adapter holds beyond its layers, once these have the model's names.

use kron_core::Dtype;

use super::base::BaseModel;
use super::other_names::Renamed;
use crate::elements::element_dtype;
use crate::extras::{ChangeKind, Extras, Magnitude, Norm, Skipped, TensorChange};
use crate::{Adapter, Error, Layer, Result, Suggestion, text};

/// Gives the modules of extras the model's names. `before` and `after` are the adapter before and after
/// [`resolve_module_names`](super::resolve_module_names). A change without a place in the model is refused, or
/// left out and listed. Returns with them a sentence on each change of names that no layer's name has.
///
/// # Errors
/// Fails if a magnitude does not fit its layer or has none, and unless `skip_unsupported` is set, on a change
/// whose tensor the model does not have, or has in another shape or type.
pub fn resolve_extras(
    extras: Extras,
    (before, after): (&Adapter, &Adapter),
    base: &impl BaseModel,
    skip_unsupported: bool,
) -> Result<(Extras, Vec<String>)> {
    let mut names = Renamed::new(before, after, base);
    let mut placed = Extras { skipped: extras.skipped, ..Extras::default() };
    placed.magnitudes =
        extras.magnitudes.into_iter().map(|(module, m)| (names.of_layer(&module), m)).collect();
    placed.embeddings = extras.embeddings.iter().map(|module| names.of_layer(module)).collect();
    for change in extras.changes {
        let module = names.of_tensor(change.module(), change.parameter());
        let change = change.in_module(module);
        match find(&change, base) {
            Ok(_) => placed.changes.push(change),
            Err(why) if skip_unsupported => {
                placed.skipped.push(Skipped { tensor: change.source().into(), why });
            }
            Err(why) => return Err(refused(&change, base, &why)),
        }
    }
    for stack in extras.experts {
        let parameter = stack.parameters().first().map_or("weight", |(name, _)| name.as_str());
        let module = names.of_tensor(stack.module(), parameter);
        placed.experts.push(stack.in_module(module));
    }
    for (module, magnitude) in &placed.magnitudes {
        let layer = after.layer(module).ok_or_else(|| {
            Error::data(format!("{} has a magnitude of DoRA, but no factors", text::name(module)))
        })?;
        check_magnitude(magnitude, layer)?;
    }
    Ok((placed, names.notes()))
}

/// Returns the name and the dtype of the tensor that a change belongs to.
///
/// # Errors
/// Fails if the model does not have it, or has it in another shape or type.
pub fn place_change(change: &TensorChange, base: &impl BaseModel) -> Result<(String, Dtype)> {
    find(change, base).map_err(|why| refused(change, base, &why))
}

fn find(change: &TensorChange, base: &impl BaseModel) -> std::result::Result<(String, Dtype), String> {
    let mut tensor = change.tensor();
    // The saved copy of a head that is the embedding.
    if let Some(embedding) = base.tied_embedding(&tensor).filter(|_| change.kind() == ChangeKind::Copy) {
        tensor = embedding.into();
    }
    let name = text::name(&tensor);
    let Some((dtype, shape)) = base.tensor(&tensor) else {
        return Err(format!(
            "it belongs to {name}, which the model does not have, and a merge adds no tensor"
        ));
    };
    let Some(dtype) = element_dtype(dtype) else {
        return Err(format!("it belongs to {name}, which is {dtype}, but values are F32, F16 or BF16"));
    };
    match shape == change.shape() && !change.values().is_empty() {
        false => Err(format!("it is {:?}, but {name} is {shape:?}", change.shape())),
        true => Ok((tensor, dtype)),
    }
}

fn refused(change: &TensorChange, base: &impl BaseModel, why: &str) -> Error {
    let source = text::name(change.source());
    Error::data(format!("{}: tensor {source} of the adapter is refused: {why}", base.name()))
        .with(Suggestion::SkipUnsupported)
}

/// Fails unless there is one value for each output or input of the layer.
fn check_magnitude(magnitude: &Magnitude, layer: &Layer) -> Result<()> {
    let (sides, needed) = match magnitude.norm() {
        Norm::OfOutputs => ("outputs", layer.shape().d_out()),
        Norm::OfInputs => ("inputs", layer.shape().d_in()),
    };
    match magnitude.values().len() == needed {
        true => Ok(()),
        false => Err(Error::data(format!(
            "layer {} ({}) has {needed} {sides}, but its magnitude of DoRA has {} values",
            layer.module(),
            layer.shape(),
            magnitude.values().len()
        ))),
    }
}
