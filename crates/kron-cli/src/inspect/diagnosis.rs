//! Diagnosis of a safetensors file that is read as no adapter: what its tensors are, and what each command makes of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kron_adapter::elements::element_dtype;
use kron_adapter::model_files::{INDEX, SINGLE};
use kron_adapter::peft;
use kron_adapter::plan::Linear;
use kron_adapter::resolve::BaseModel;
use kron_adapter::text::{name, one_line};
use kron_adapter::{ReadOptions, diffusers_file, read_whole};
use safetensors::Dtype;
use serde::Serialize;

use crate::model::{Base, Layers, is_embedding, scanned_layers};
use crate::table::table;
use crate::{Error, Result};

/// Kinds of tensors that a part of their names tells: the first that matches counts.
const BY_NAME: [(&str, &[&str]); 10] = [
    ("factors of LoRA", &["lora_A.", "lora_B.", "lora_down.", "lora_up.", "lora.down.", "lora.up."]),
    ("LoRA of embeddings", &["lora_embedding_"]),
    ("magnitudes of DoRA", &["dora_scale", "lora_magnitude_vector"]),
    ("Tucker cores of convolutions", &["lokr_t2", "lora_mid", "hada_t"]),
    ("factors of LoKr", &["lokr_w"]),
    ("factors of LoHa", &["hada_w"]),
    ("factors of other methods", &[".oft_", ".boft_", ".ia3_", ".vera_lambda", ".glora_", ".randlora_"]),
    (
        QUANTISED,
        &[
            "absmax",
            "quant_map",
            "quant_state",
            "qweight",
            "qzeros",
            "g_idx",
            "weight_scale",
            "weight_packed",
        ],
    ),
    ("rows of trained tokens", &["trainable_tokens"]),
    ("trained norms and biases", &[".w_norm", ".b_norm", ".diff_b", "lora_B.bias"]),
];

/// Kinds that a model has too.
const OF_MODELS: [&str; 6] = [ALPHAS, QUANTISED, EMBEDDINGS, LINEAR, VECTORS, OTHERS];
const ALPHAS: &str = "alphas";
const QUANTISED: &str = "parts of quantised weights";
const EMBEDDINGS: &str = "embeddings";
const LINEAR: &str = "weights of linear layers";
const VECTORS: &str = "vectors: norms, biases";
const OTHERS: &str = "convolutions, stacked weights and others";

/// Kinds of tensors that their last component tells.
const BY_END: [(&str, &str); 2] = [(ALPHAS, ".alpha"), ("differences of whole weights", ".diff")];

/// Printed result.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    path: String,
    /// `model`, `adapter`, or `file` where neither is seen.
    holds: &'static str,
    /// Reason why it is read as no adapter.
    refused: String,
    tensors: usize,
    groups: Vec<Group>,
    /// Linear layers, as `kron plan` sees them.
    layers: Vec<Kind>,
    commands: Vec<Verdict>,
    notes: Vec<String>,
}

/// Tensors of one kind.
#[derive(Debug, Serialize)]
struct Group {
    what: &'static str,
    tensors: usize,
    values: u64,
    dtypes: Vec<String>,
    /// Name of the first.
    first: String,
}

/// Linear layers of one name and size.
#[derive(Debug, Serialize)]
struct Kind {
    name: String,
    count: u32,
    d_out: usize,
    d_in: usize,
}

/// Answer of some commands to the file.
#[derive(Debug, Serialize)]
struct Verdict {
    commands: &'static str,
    accepted: bool,
    why: String,
}

impl Diagnosis {
    /// Looks at the file, or at the weights in the folder, that `error` refuses as an adapter.
    ///
    /// # Errors
    /// There is no safetensors file that can be read: `error`, or what is wrong with the model in the folder.
    pub fn of(path: &Path, options: &ReadOptions, error: Error) -> Result<Self> {
        let is_model = [INDEX, SINGLE].iter().any(|name| path.join(name).exists());
        let base = match Base::open(&weights(path)) {
            Ok(base) => base,
            Err(fault) if is_model && !path.join(peft::CONFIG).exists() => return Err(fault),
            Err(_) => return Err(error),
        };
        let names: Vec<&str> = base.tensor_names().collect();
        let groups = groups(&base);
        let is_adapter = groups.iter().any(|group| !OF_MODELS.contains(&group.what));
        let is_adapter = is_adapter || path.join(peft::CONFIG).exists();
        let refused = error.to_string();
        let (layers, mut commands, notes) = match is_adapter {
            true => (Vec::new(), Vec::new(), Vec::new()),
            false => of_model(&base),
        };
        let reason = match is_adapter {
            true => refused.clone(),
            false => "it has no factor of an adapter".into(),
        };
        let holds = match (is_adapter, layers.is_empty()) {
            (true, _) => "adapter",
            (false, false) => "model",
            (false, true) => "file",
        };
        let merge = is_adapter.then(|| of_merge(path, options));
        let others = match merge {
            Some(_) => "convert, diff, quantise",
            None => "convert, diff, quantise; merge as ADAPTER",
        };
        commands.extend(merge);
        commands.push(Verdict { commands: others, accepted: false, why: reason });
        Ok(Self {
            path: path.display().to_string(),
            holds,
            refused,
            tensors: names.len(),
            groups,
            layers,
            commands,
            notes,
        })
    }

    /// Returns the report as text.
    pub fn table(&self) -> String {
        let groups = self.groups.iter().map(|group| {
            let dtypes = group.dtypes.join(", ");
            vec![
                group.what.into(),
                dtypes,
                group.first.clone(),
                group.tensors.to_string(),
                group.values.to_string(),
            ]
        });
        let mut text = format!(
            "{}: {} of {} tensors, not read as an adapter: {}\n\n{}",
            one_line(&self.path),
            self.holds,
            self.tensors,
            one_line(&self.refused),
            table(&["tensors", "types", "first", "count", "values"], 3, groups)
        );
        if !self.layers.is_empty() {
            let layers = self.layers.iter().map(|kind| {
                let sizes = [kind.count as usize, kind.d_out, kind.d_in].map(|size| size.to_string());
                [vec![kind.name.clone()], sizes.to_vec()].concat()
            });
            text += &format!("\n\n{}", table(&["linear layer", "×", "d_out", "d_in"], 1, layers));
        }
        for verdict in &self.commands {
            let word = if verdict.accepted { "accepted" } else { "refused" };
            text += &format!("\n\n{}: {word}: {}", verdict.commands, one_line(&verdict.why));
        }
        for note in &self.notes {
            text += &format!("\n\nnote: {}", one_line(note));
        }
        text
    }
}

/// Returns what a merge makes of an adapter that holds more than ΔW.
fn of_merge(path: &Path, options: &ReadOptions) -> Verdict {
    let verdict = |accepted, why| Verdict { commands: "merge as ADAPTER", accepted, why };
    let error = match read_whole(path, options, false) {
        Err(error) => error,
        Ok((loaded, extras)) => {
            let counts = [
                (loaded.adapter.modules(), "layers"),
                (extras.magnitudes.len(), "magnitudes of DoRA"),
                (extras.changes.len(), "other tensors"),
                (extras.experts.len(), "stacks of experts"),
                (loaded.adapter.trained_tensors().len(), "trained tensors"),
            ];
            let counts = counts.into_iter().filter(|(count, _)| *count > 0);
            let counts: Vec<_> = counts.map(|(count, what)| format!("{count} {what}")).collect();
            return verdict(true, format!("it folds {}", counts.join(", ")));
        }
    };
    let skipped = match read_whole(path, options, true) {
        Ok((_, extras)) => extras.skipped.len(),
        Err(_) => return verdict(false, error.to_string()),
    };
    verdict(false, format!("{error}; --skip-unsupported leaves out {skipped} tensors, and lists them"))
}

/// Returns the weights of an adapter's folder, or else the path itself.
fn weights(path: &Path) -> PathBuf {
    let weights = path.join(peft::WEIGHTS);
    if weights.is_file() { weights } else { diffusers_file(path).into_owned() }
}

/// Returns the layers that `plan` sees, and what `plan` and `merge` make of the model.
fn of_model(base: &Base) -> (Vec<Kind>, Vec<Verdict>, Vec<String>) {
    let plan = |accepted, why| Verdict { commands: "plan", accepted, why };
    let (layers, plan, notes) = match scanned_layers(base) {
        Err(error) => (Vec::new(), plan(false, error.to_string()), Vec::new()),
        Ok(Layers { model, notes }) => {
            let layers: Vec<Kind> = model.linears().iter().map(Kind::new).collect();
            let count: u64 = layers.iter().map(|kind| u64::from(kind.count)).sum();
            (layers, plan(true, format!("{count} linear layers")), notes)
        }
    };
    let mut by_dtype: BTreeMap<String, (usize, bool)> = BTreeMap::new();
    for module in base.modules().filter(|module| base.linear(module).is_some() && !is_embedding(module)) {
        if let Some((dtype, _)) = base.weight(module) {
            by_dtype.entry(dtype.to_string()).or_insert((0, element_dtype(dtype).is_some())).0 += 1;
        }
    }
    let list = |takes: bool| {
        let of_kind = by_dtype.iter().filter(|(_, (_, is_element))| *is_element == takes);
        of_kind.map(|(dtype, (count, _))| format!("{count} of {dtype}")).collect::<Vec<_>>().join(", ")
    };
    let (some, others) = (list(true), list(false));
    let why = match (some.is_empty(), others.is_empty()) {
        (true, true) => "it has no weight of two dimensions".into(),
        (true, false) => format!("its weights, {others}, are not F32, F16 or BF16"),
        (false, true) => format!("weights that take an adapter: {some}"),
        (false, false) => format!("weights that take an adapter: {some}; that do not: {others}"),
    };
    let merge = Verdict { commands: "merge as BASE", accepted: !some.is_empty(), why };
    (layers, vec![merge, plan], notes)
}

/// Returns what a tensor is.
fn kind(base: &Base, tensor: &str, shape: &[usize]) -> &'static str {
    let by_name = BY_NAME.iter().find(|(_, marks)| marks.iter().any(|mark| tensor.contains(mark)));
    let by_end = BY_END.iter().find(|(_, end)| tensor.ends_with(end));
    if let Some(what) = by_name.map(|(what, _)| what).or(by_end.map(|(what, _)| what)) {
        return what;
    }
    let module = tensor.strip_suffix(".weight").filter(|module| base.linear(module).is_some());
    match (module, shape.len()) {
        (Some(module), _) if is_embedding(module) => EMBEDDINGS,
        (Some(_), _) => LINEAR,
        (None, 0 | 1) => VECTORS,
        (None, _) => OTHERS,
    }
}

fn groups(base: &Base) -> Vec<Group> {
    let mut groups: BTreeMap<&str, (Group, Vec<Dtype>)> = BTreeMap::new();
    for tensor in base.tensor_names() {
        let Some((dtype, shape)) = base.tensor(tensor) else { continue };
        let what = kind(base, tensor, shape);
        let first =
            || Group { what, tensors: 0, values: 0, dtypes: Vec::new(), first: name(tensor).into_owned() };
        let (group, dtypes) = groups.entry(what).or_insert_with(|| (first(), Vec::new()));
        group.tensors += 1;
        group.values = group.values.saturating_add(shape.iter().product::<usize>() as u64);
        if !dtypes.contains(&dtype) {
            dtypes.push(dtype);
        }
    }
    let with_dtypes = |(group, dtypes): (Group, Vec<Dtype>)| Group {
        dtypes: dtypes.iter().map(ToString::to_string).collect(),
        ..group
    };
    groups.into_values().map(with_dtypes).collect()
}

impl Kind {
    fn new(linear: &Linear) -> Self {
        let (name, dims) = (linear.name().into(), linear.dims());
        Self { name, count: linear.count(), d_out: dims.d_out, d_in: dims.d_in }
    }
}
