//! Takes what lies beyond ΔW out of a file's tensors; the factors of ΔW are left for the format's reader.

use std::collections::{BTreeMap, BTreeSet};

use kron_core::{KronShape, LayerDims, Theta};

use super::experts::{self, Experts, Pair};
use super::{ChangeKind, Extras, Magnitude, Scope, Skipped, TensorChange};
use crate::limits::work;
use crate::lokr::reason;
use crate::matrix::Matrix;
use crate::{Error, Layer, Result, Scaling, Tensors, text};

/// Function from a module to its scaling.
type ScalingOf<'a> = dyn Fn(&str) -> Result<Scaling> + 'a;

/// How a format names its tensors.
pub(crate) struct Convention<'a> {
    /// Prefix of every name.
    pub prefix: &'a str,
    /// Returns the module of a factor's name that the format's reader understands.
    pub module: &'a dyn Fn(&str) -> Option<&str>,
    /// Returns the scaling of a module; `None` for a format without a configuration that says it.
    pub scaling: Option<&'a ScalingOf<'a>>,
    /// Paths of parameters that have factors beside the layers' weights, or their ends.
    pub target_parameters: &'a [String],
    /// Reason against any other tensor.
    pub otherwise: &'static str,
}

impl Convention<'_> {
    fn scaling_of(&self, module: &str) -> Result<Scaling> {
        self.scaling.map_or_else(|| Scaling::plain(1.0), |scaling| scaling(module))
    }
}

impl Role {
    /// True for a tensor that is multiplied by the layer's scale.
    const fn is_scaled(self) -> bool {
        matches!(self, Self::EmbeddingA | Self::EmbeddingB | Self::Add(_, true))
    }
}

/// Tensors beyond ΔW, and the names of the others.
#[derive(Default)]
pub(crate) struct Taken {
    /// Names of the factors.
    pub left: Vec<String>,
    /// Layers of embeddings.
    pub layers: Vec<Layer>,
    pub extras: Extras,
}

/// Meaning of a tensor, by the end of its name.
#[derive(Clone, Copy)]
enum Role {
    /// Magnitude, with ε.
    Magnitude(f64),
    EmbeddingA,
    EmbeddingB,
    /// Added to this parameter; multiplied by the layer's scale if true.
    Add(&'static str, bool),
    Copy(&'static str),
}

/// Ends of names. PEFT's first, then LyCORIS's.
const ROLES: [(&str, Role); 11] = [
    ("lora_magnitude_vector", Role::Magnitude(0.0)),
    ("lora_magnitude_vector.weight", Role::Magnitude(0.0)),
    ("lora_embedding_A", Role::EmbeddingA),
    ("lora_embedding_B", Role::EmbeddingB),
    ("lora_B.bias", Role::Add("bias", true)),
    ("base_layer.weight", Role::Copy("weight")),
    ("dora_scale", Role::Magnitude(f32::EPSILON as f64)),
    ("diff", Role::Add("weight", false)),
    ("diff_b", Role::Add("bias", false)),
    ("w_norm", Role::Add("weight", false)),
    ("b_norm", Role::Add("bias", false)),
];

/// Modules of input embeddings and output heads, which PEFT saves beside the factors.
const EMBEDDINGS: [&str; 5] = ["embed_tokens", "lm_head", "wte", "word_embeddings", "embed_out"];

/// Reason against a tensor that is multiplied by a scale, in a format that has none for it.
const UNSCALED: &str = "its scale stands in the adapter_config.json of PEFT, which this file lacks";
/// Most parameters that all stacks of experts may belong to, for each tensor of the file.
const PARAMETERS: usize = 8;

/// Takes the tensors beyond ΔW out of these names.
///
/// # Errors
/// Fails on a tensor of another shape than its role has, and on values that are not finite in float32.
pub(crate) fn take(tensors: &Tensors, names: Vec<String>, of: &Convention, scope: Scope) -> Result<Taken> {
    let Scope::Whole { skip_unsupported } = scope else {
        return Ok(Taken { left: names, ..Taken::default() });
    };
    check_paths(tensors, &names, of)?;
    let mut taken = Taken::default();
    let mut embeddings: BTreeMap<&str, [Option<&String>; 2]> = BTreeMap::new();
    let mut stacks: BTreeMap<(&str, usize), Pair> = BTreeMap::new();
    let skipped = if skip_unsupported { unsupported(tensors, &names, of)? } else { BTreeMap::new() };
    for stored in &names {
        let name = stored.strip_prefix(of.prefix).unwrap_or(stored);
        if let Some(why) = skipped.get(stored) {
            taken.extras.skipped.push(Skipped { tensor: stored.clone(), why: why.clone() });
            continue;
        }
        if let Some((module, depth, is_up)) = experts::parts(name, of.target_parameters) {
            let pair = stacks.entry((module, depth)).or_default();
            *(if is_up { &mut pair.up } else { &mut pair.down }) = Some(stored);
            continue;
        }
        let Some((module, role)) = role(name) else {
            taken.left.push(stored.clone());
            continue;
        };
        let change = |parameter, kind| TensorChange::read(tensors, stored, (module, parameter), kind);
        if of.scaling.is_none() && role.is_scaled() {
            let name = text::name(stored);
            return Err(Error::data(format!("{}: tensor {name} is refused: {UNSCALED}", tensors.path())));
        }
        let scale = || of.scaling_of(module).map(|scaling| scaling.scale().get());
        match role {
            Role::Magnitude(epsilon) => {
                let magnitude = Magnitude::read(tensors, stored, epsilon)?;
                if taken.extras.magnitudes.insert(module.into(), magnitude).is_some() {
                    let twice = format!("{}: {} has two magnitudes", tensors.path(), text::name(module));
                    return Err(Error::data(twice));
                }
            }
            Role::EmbeddingA => embeddings.entry(module).or_default()[0] = Some(stored),
            Role::EmbeddingB => embeddings.entry(module).or_default()[1] = Some(stored),
            Role::Add(parameter, scaled) => {
                let scale = if scaled { scale()? } else { 1.0 };
                taken.extras.changes.push(change(parameter, ChangeKind::Add(scale))?);
            }
            Role::Copy(parameter) => taken.extras.changes.push(change(parameter, ChangeKind::Copy)?),
        }
    }
    let mut left = PARAMETERS * names.len();
    for ((module, _), pair) in stacks {
        let scaled =
            |parameter: &str| Ok((parameter.to_string(), of.scaling_of(&format!("{module}.{parameter}"))?));
        let parameters = experts::parameters(module, of.target_parameters)
            .take(left + 1)
            .map(scaled)
            .collect::<Result<Vec<_>>>()?;
        left = left.checked_sub(parameters.len()).ok_or_else(|| {
            Error::data(format!(
                "{}: target_parameters has more than {PARAMETERS} paths for a tensor, {} in all",
                tensors.path(),
                of.target_parameters.len()
            ))
        })?;
        taken.extras.experts.push(Experts::read(tensors, module, &pair, parameters)?);
    }
    for (module, factors) in embeddings {
        let layer = embedding(tensors, module, factors, of)?;
        if let Some(magnitude) = taken.extras.magnitudes.remove(module) {
            taken.extras.magnitudes.insert(module.into(), magnitude.of_columns());
        }
        taken.extras.embeddings.insert(module.into());
        taken.layers.push(layer);
    }
    match taken.left.is_empty() && taken.extras.is_empty() && !taken.extras.skipped.is_empty() {
        true => Err(Error::data(format!(
            "{}: none of its {} tensors can be merged: {} {}",
            tensors.path(),
            names.len(),
            text::name(&taken.extras.skipped[0].tensor),
            taken.extras.skipped[0].why
        ))),
        false => Ok(taken),
    }
}

/// Fails if the comparison of all names with all paths takes more than the file may.
fn check_paths(tensors: &Tensors, names: &[String], of: &Convention) -> Result<()> {
    let bytes = of.target_parameters.iter().map(|path| path.len() as u64 + 1).sum::<u64>();
    match bytes.saturating_mul(names.len() as u64) <= work(tensors.len()) {
        true => Ok(()),
        false => Err(Error::data(format!(
            "{}: target_parameters has {} paths for {} tensors, whose comparison takes more than the file may",
            tensors.path(),
            of.target_parameters.len(),
            names.len()
        ))),
    }
}

/// Returns true for the name of a tensor that a merge folds beside factors.
pub(crate) fn is_beyond(name: &str) -> bool {
    ROLES.iter().any(|(end, _)| module(name, end).is_some())
}

/// Returns the module and the role of a tensor that is no factor of ΔW.
fn role(name: &str) -> Option<(&str, Role)> {
    let known = ROLES.iter().find_map(|(end, role)| Some((module(name, end)?, *role)));
    if known.is_some() {
        return known;
    }
    let module = module(name, "weight")?;
    let last = module.rsplit('.').next().unwrap_or(module);
    EMBEDDINGS.contains(&last).then_some((module, Role::Copy("weight")))
}

fn module<'a>(name: &'a str, end: &str) -> Option<&'a str> {
    name.strip_suffix(end)?.strip_suffix('.')
}

/// Makes the layer of an embedding: W, n × d, takes s·(B·A)ᵀ = s·Aᵀ·Bᵀ.
fn embedding(
    tensors: &Tensors,
    module: &str,
    factors: [Option<&String>; 2],
    of: &Convention,
) -> Result<Layer> {
    let refused = |why: String| Error::data(format!("{}: {} {why}", tensors.path(), text::name(module)));
    let [Some(a), Some(b)] = factors else {
        return Err(refused("needs both lora_embedding_A and lora_embedding_B".into()));
    };
    let (a, b) = (Matrix::read(tensors, a)?, Matrix::read(tensors, b)?);
    let scaling = of.scaling_of(module)?;
    if (a.rows, b.cols) != (scaling.rank(), scaling.rank()) {
        return Err(refused(format!(
            "has factors of ranks {} and {}, but its configuration has r = {}",
            a.rows,
            b.cols,
            scaling.rank()
        )));
    }
    let (up, down) = (a.transposed(), b.transposed());
    let theta = KronShape::lora(LayerDims { d_out: up.rows, d_in: down.cols }, up.cols)
        .and_then(|shape| Theta::from_factors(shape, &[], &up.data, &down.data));
    theta
        .map_err(Error::from)
        .and_then(|theta| Layer::new(module, scaling, theta))
        .map_err(|e| e.about(format_args!("layer {}", text::name(module))).about(tensors.path()))
}

/// Returns the tensors that no reader understands, with the reason, and the factors of their modules: what is left
/// of a module without one of its tensors would be another change.
fn unsupported(tensors: &Tensors, names: &[String], of: &Convention) -> Result<BTreeMap<String, String>> {
    let mut skipped = BTreeMap::new();
    let mut modules = BTreeSet::new();
    let adapted: BTreeSet<&str> = names.iter().filter_map(|stored| (of.module)(stored)).collect();
    for stored in names {
        let name = stored.strip_prefix(of.prefix).unwrap_or(stored);
        match role(name) {
            Some((_, role)) if role.is_scaled() && of.scaling.is_none() => {
                skipped.insert(stored.clone(), UNSCALED.to_string());
                continue;
            }
            None if experts::parts(name, of.target_parameters).is_none() => {}
            _ => continue,
        }
        let (module, why) = match (of.module)(stored) {
            Some(module) if is_convolution(&tensors.info(stored)?.shape) => {
                (Some(module), "it belongs to a convolution, and only linear layers are supported")
            }
            Some(_) => continue,
            None => (factor_of(name, &adapted), reason(name, of.otherwise)),
        };
        skipped.insert(stored.clone(), why.to_string());
        modules.extend(module);
    }
    for stored in names {
        let name = stored.strip_prefix(of.prefix).unwrap_or(stored);
        let module = (of.module)(stored).or_else(|| Some(role(name)?.0));
        let module = module.filter(|module| modules.contains(module));
        if let (Some(module), false) = (module, skipped.contains_key(stored)) {
            let why = format!("other tensors of {} cannot be merged", text::name(module));
            skipped.insert(stored.clone(), why);
        }
    }
    Ok(skipped)
}

/// Returns the module that a tensor is a part of ΔW of: an adapted one that its name begins with. A bias and a whole weight
/// stand beside the factors, and change no ΔW.
fn factor_of<'a>(name: &'a str, adapted: &BTreeSet<&str>) -> Option<&'a str> {
    let mut ends = name.match_indices('.').map(|(at, _)| (&name[..at], &name[at + 1..]));
    let (module, rest) = ends.find(|(module, _)| adapted.contains(module))?;
    (!["bias", "weight", "base_layer.bias", "base_layer.weight"].contains(&rest)).then_some(module)
}

fn is_convolution(shape: &[usize]) -> bool {
    shape.len() > 2 && shape[2..].iter().any(|dim| *dim != 1)
}
