//! Places of what an adapter holds beyond its layers, once these have the model's names.

use kron_core::Dtype;

use super::base::{BaseModel, weight_name};
use super::other_names::Renamed;
use crate::elements::element_dtype;
use crate::extras::{ChangeKind, Extras, Magnitude, Norm, Skipped, TensorChange, TokenRows};
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
    for rows in extras.tokens {
        let module = names.of_tensor(rows.module(), "weight");
        let rows = rows.in_module(module);
        place_tokens(&rows, base)?;
        placed.tokens.push(rows);
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

/// Returns the name, the dtype and the number of rows of the weight that trained rows belong to.
///
/// # Errors
/// Fails if the model does not have it, or has fewer or other rows.
pub fn place_tokens(rows: &TokenRows, base: &impl BaseModel) -> Result<(String, Dtype, usize)> {
    let tensor = weight_name(rows.module());
    let (source, name) = (text::name(rows.source()), text::name(&tensor));
    let refused = |why: String| {
        Error::data(format!("{}: tensor {source} of the adapter is refused: {why}", base.name()))
    };
    let Some((dtype, shape)) = base.tensor(&tensor) else {
        return Err(refused(format!("it belongs to {name}, which the model does not have")));
    };
    let dtype = element_dtype(dtype)
        .ok_or_else(|| refused(format!("{name} is {dtype}, but values are F32, F16 or BF16")))?;
    let &[height, width] = shape else {
        return Err(refused(format!("{name} is {shape:?}, and has no rows for tokens")));
    };
    if width != rows.width() {
        return Err(refused(format!(
            "its rows have {} values, but those of {name} have {width}",
            rows.width()
        )));
    }
    match rows.tokens().iter().find(|token| **token >= height) {
        Some(token) => Err(refused(format!("its token {token} is beyond the {height} of {name}"))),
        None => Ok((tensor, dtype, height)),
    }
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
