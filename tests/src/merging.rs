//! Adapters as `kron merge` and `kron combine` meet them: read whole and by options, matched with small models,
//! folded, and combined.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use kron_adapter::combine::{Majority, Method, combine};
use kron_adapter::extras::Extras;
use kron_adapter::resolve::{
    BaseTensors, place_change, place_experts, place_layers, place_trained_tensors, resolve_extras,
    resolve_module_names,
};
use kron_adapter::{Error, Loaded, ReadOptions, Suggestion, Tensors, read_whole, read_with};
use kron_cli::merge::{Unresolved, fold_zeros};
use safetensors::Dtype;

/// Folder of the adapters that hold more than ΔW, and of their model.
pub const EXTRAS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/extras");

/// Choices of an adapter's name and of the start of its modules' names.
const CHOICES: [[Option<&str>; 2]; 7] = [
    [None, None],
    [Some("default"), None], // NAMED
    [Some("b"), None],
    [None, Some("model.")],
    [None, Some("transformer.")],
    [None, Some("lora_te1_")],
    [Some("default"), Some("a.0.")],
];

/// Choice where a file has several adapters and nothing is said of them.
const NAMED: usize = 1;

/// Most values of a model that is made for an adapter, and of one of its tensors.
const MAX_VALUES: usize = 1 << 12;

/// Types of the tensors of such a model, in turn; the last takes no sum.
const DTYPES: [Dtype; 7] =
    [Dtype::BF16, Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F16, Dtype::I32];

/// The model of the adapters in [`EXTRAS`].
static MODEL: LazyLock<BaseTensors> = LazyLock::new(|| {
    let tensors = Tensors::read(Path::new(&format!("{EXTRAS}/base.safetensors"))).expect("the model");
    let entry = |name: String| {
        let info = tensors.info(&name).expect("a tensor of its own");
        (name, info.dtype, info.shape.clone())
    };
    BaseTensors::new("model", tensors.names().into_iter().map(entry))
});

/// Reads the adapter at `path` without options, and with those that `choice` draws; matches it with models, folds it
/// into them, and combines it. Returns true if a reading was accepted.
///
/// # Panics
/// A step panicked, which is what a fuzzer looks for, or refused in more than one sentence.
pub fn read_any(path: &Path, choice: usize) -> bool {
    let (choice, draw) = (choice % CHOICES.len(), choice / CHOICES.len());
    let (skip_unsupported, root) = (draw.is_multiple_of(2), ["", "tower."][draw / 2 % 2]);
    let plain = read_whole(path, &ReadOptions::default(), skip_unsupported);
    let needs_name = |error: &Error| error.suggestion() == Some(Suggestion::AdapterName);
    let choice = if plain.as_ref().is_err_and(needs_name) { NAMED } else { choice };
    let [adapter_name, only] = CHOICES[choice].map(|text| text.map(String::from));
    let options = ReadOptions { adapter_name, only };
    let chosen = (choice > 0).then(|| match draw / 4 % 2 {
        0 => read_whole(path, &options, skip_unsupported),
        _ => read_with(path, &options).map(|loaded| (loaded, Extras::default())),
    });
    let mut accepted = false;
    for read in [Some(plain), chosen].into_iter().flatten() {
        if let Some((loaded, extras)) = checked(read) {
            accepted = true;
            merge(&loaded, &extras, root, skip_unsupported);
            combine_all(&loaded, draw);
        }
    }
    accepted
}

/// Returns a result, if it is one, and checks the message of an error.
fn checked<T>(result: Result<T, Error>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error.to_string(),
    };
    assert!(!error.is_empty() && !error.chars().any(char::is_control), "{error:?}");
    assert!(error.len() < 20_000, "{} bytes of message", error.len());
    None
}

/// Matches an adapter with the model of the golden files and with one of its own names, behind a `root`.
fn merge(loaded: &Loaded, extras: &Extras, root: &str, skip_unsupported: bool) {
    for base in [&*MODEL, &model_of(loaded, extras, root)] {
        let adapter = &loaded.adapter;
        let resolved = match adapter.layers().is_empty() {
            true => Some(adapter.clone()),
            false => checked(resolve_module_names(adapter, base)).map(|resolved| resolved.adapter),
        };
        // Places are found too where names were not: a caller may skip that step.
        let named = resolved.as_ref().unwrap_or(adapter);
        let placed = checked(resolve_extras(extras.clone(), (adapter, named), base, skip_unsupported));
        let placed = placed.map_or_else(|| extras.clone(), |(placed, _)| placed);
        checked(place_layers(named, base));
        checked(place_trained_tensors(named, base));
        checked(place_experts(&placed.experts, base));
        placed.changes.iter().for_each(|change| drop(checked(place_change(change, base))));
        let weighted = |weight| Unresolved { weight, loaded: loaded.clone(), extras: extras.clone() };
        checked(fold_zeros(vec![weighted(1.0)], base, skip_unsupported));
        checked(fold_zeros(vec![weighted(0.5), weighted(-2.0)], base, skip_unsupported));
    }
}

/// Makes a model with the tensors that an adapter changes, as far as they are small.
fn model_of(loaded: &Loaded, extras: &Extras, root: &str) -> BaseTensors {
    let mut tensors: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for layer in loaded.adapter.layers() {
        tensors
            .insert(format!("{}.weight", layer.module()), vec![layer.shape().d_out(), layer.shape().d_in()]);
    }
    for trained in loaded.adapter.trained_tensors() {
        let mut shape = trained.shape().to_vec();
        if let Some(rows) = trained.rows() {
            shape[0] = rows.iter().max().map_or(1, |row| row.saturating_add(1));
        }
        tensors.insert(trained.name().into(), shape);
    }
    for change in &extras.changes {
        tensors.insert(change.tensor(), change.shape().to_vec());
    }
    for stack in &extras.experts {
        let (d_in, d_out, ranks) = stack.sizes();
        for (parameter, scaling) in stack.parameters() {
            let experts = ranks / scaling.rank().max(1);
            tensors.insert(format!("{}.{parameter}", stack.module()), vec![experts, d_out, d_in]);
        }
    }
    let mut left = MAX_VALUES;
    let small = tensors.into_iter().filter(|(_, shape)| {
        let values = shape.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
        values.and_then(|values| left.checked_sub(values)).map(|rest| left = rest).is_some()
    });
    let typed = small.zip(DTYPES.iter().cycle());
    BaseTensors::new("made", typed.map(|((name, shape), dtype)| (format!("{root}{name}"), *dtype, shape)))
}

/// Combines an adapter with itself by every method, under the limits of its file.
fn combine_all(loaded: &Loaded, draw: usize) {
    let (adapter, seed) = (&loaded.adapter, draw as u64);
    let (density, majority) =
        (0.5, if draw.is_multiple_of(2) { Majority::Total } else { Majority::Frequency });
    for method in [
        Method::Cat,
        Method::Linear,
        Method::Ties { density, majority },
        Method::DareLinear { density, seed },
        Method::DareTies { density, seed, majority },
        Method::MagnitudePrune { density },
    ] {
        for adapters in [&[(adapter, 0.5)][..], &[(adapter, 0.5), (adapter, -0.25)]] {
            let mut limits = loaded.limits.and(&loaded.limits);
            if let Some(one) = checked(combine(adapters, method, &mut limits)) {
                assert_eq!(one.layers().len(), adapter.layers().len());
            }
        }
    }
}
