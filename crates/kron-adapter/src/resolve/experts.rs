//! The parameter that each stack of LoRAs belongs to, and the order of its dimensions.

use std::collections::BTreeMap;

use kron_core::{Dtype, KronShape, LayerDims, Scale, Theta};
use safetensors::Dtype as FileDtype;

use super::base::BaseModel;
use crate::elements::element_dtype;
use crate::extras::Experts;
use crate::{Error, Result, Scaling, text};

/// LoRAs of a parameter's experts, each in the orientation in which the model stores it.
#[derive(Clone, Debug)]
pub struct PlacedExperts {
    /// Name of the parameter in the model.
    pub tensor: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// s of all experts.
    pub scale: Scale,
    /// Factors of each expert, rows × columns of its matrix.
    pub experts: Vec<Theta>,
}

/// A parameter that a stack may belong to.
struct Candidate {
    tensor: String,
    dtype: FileDtype,
    /// Number of experts, and rows and columns of one.
    shape: [usize; 3],
    scaling: Scaling,
}

/// Finds the parameter of every stack. Its experts lie in [E, out, in] or, in some models, in [E, in, out]; a
/// square one has the order of another parameter of its module.
///
/// # Errors
/// Fails if the model has no parameter or several that fit, and if nothing tells the order of a square one.
pub fn place_experts(stacks: &[Experts], base: &impl BaseModel) -> Result<Vec<PlacedExperts>> {
    let mut by_module: BTreeMap<&str, Vec<&Experts>> = BTreeMap::new();
    stacks.iter().for_each(|stack| by_module.entry(stack.module()).or_default().push(stack));
    let mut placed = Vec::new();
    for (module, stacks) in by_module {
        let refused = |why: String| Error::data(format!("{}: {} {why}", base.name(), text::name(module)));
        let mut found = Vec::new();
        for stack in stacks {
            let mut candidates = candidates(stack, base);
            let (Some(one), None) = (candidates.pop(), candidates.pop()) else {
                let (d_in, d_out, ranks) = stack.sizes();
                let names: Vec<_> = stack.parameters().iter().map(|(name, _)| text::name(name)).collect();
                return Err(refused(format!(
                    "has factors of {d_out} × {d_in} with {ranks} ranks in all, which belong to exactly one of its parameters {}, but none or several fit",
                    names.join(", ")
                )));
            };
            if found.iter().any(|(_, other): &(&Experts, Candidate)| other.tensor == one.tensor) {
                return Err(refused(format!(
                    "has two pairs of factors that fit {}",
                    text::name(&one.tensor)
                )));
            }
            found.push((stack, one));
        }
        // All parameters of a module are stored in one order.
        let order = found.iter().find_map(|(stack, at)| in_first(stack, at));
        for (stack, at) in found {
            let in_first = match (in_first(stack, &at), order) {
                (Some(own), _) => own,
                (None, Some(order)) => order,
                (None, None) => {
                    return Err(refused(format!(
                        "is refused: {} has square experts, so nothing tells whether it is [E, out, in] or [E, in, out]",
                        text::name(&at.tensor)
                    )));
                }
            };
            placed.push(placement(stack, &at, in_first, base)?);
        }
    }
    Ok(placed)
}

/// Returns the parameters whose shape the factors fit, in either order.
fn candidates(stack: &Experts, base: &impl BaseModel) -> Vec<Candidate> {
    let (d_in, d_out, ranks) = stack.sizes();
    let fits = |(name, scaling): &(String, Scaling)| {
        let tensor = format!("{}.{name}", stack.module());
        let (dtype, shape) = base.tensor(&tensor)?;
        let (shape, is_stack) = match *shape {
            [experts, rows, columns] => ([experts, rows, columns], true),
            [rows, columns] => ([1, rows, columns], false),
            _ => return None,
        };
        let [experts, rows, columns] = shape;
        let sides = (rows, columns) == (d_out, d_in) || is_stack && (rows, columns) == (d_in, d_out);
        let fits = sides && experts.checked_mul(scaling.rank()) == Some(ranks);
        fits.then_some(Candidate { tensor, dtype, shape, scaling: *scaling })
    };
    stack.parameters().iter().filter_map(fits).collect()
}

/// Returns true for [E, in, out] and false for [E, out, in]; `None` for square experts.
fn in_first(stack: &Experts, at: &Candidate) -> Option<bool> {
    let (d_in, d_out, _) = stack.sizes();
    (d_in != d_out).then(|| at.shape[1] == d_in)
}

fn placement(
    stack: &Experts,
    at: &Candidate,
    in_first: bool,
    base: &impl BaseModel,
) -> Result<PlacedExperts> {
    let Some(dtype) = element_dtype(at.dtype) else {
        return Err(Error::data(format!(
            "{}: {} is {}, but a weight that can be added to is F32, F16 or BF16",
            base.name(),
            text::name(&at.tensor),
            at.dtype
        )));
    };
    let [experts, rows, columns] = at.shape;
    let shape = KronShape::lora(LayerDims { d_out: rows, d_in: columns }, at.scaling.rank())?;
    let theta = |e: usize| {
        let (up, down) = stack.expert(e, experts);
        let (up, down) = if in_first { (down.transposed(), up.transposed()) } else { (up, down) };
        Ok(Theta::from_factors(shape, &[], &up.data, &down.data)?)
    };
    let experts = (0..experts).map(theta).collect::<Result<_>>()?;
    Ok(PlacedExperts { tensor: at.tensor.clone(), dtype, scale: at.scaling.scale(), experts })
}
