//! `adapter_config.json`, read strictly: a field that may change the layer is understood or refused.

use std::collections::BTreeMap;
use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::patterns::{Patterns, compile};
use super::saved;
use super::tokens::{TokenIndices, indices};
use crate::adapter::is_target;
use crate::extras::Scope;
use crate::text::{json_fault, shown, without_nan};
use crate::{Adapter, Error, Layer, Result, ScaleRule, Scaling, text};

/// Methods that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Lora,
    Lokr,
}

/// Fields that determine ΔW.
#[derive(Debug)]
pub struct Config {
    pub kind: Kind,
    rank: usize,
    alpha: f64,
    ranks: Patterns<usize>,
    alphas: Patterns<f64>,
    rule: ScaleRule,
    target_modules: Vec<String>,
    /// Biases that were trained: all, or those of the layers; `None` for none.
    bias: Option<String>,
    /// Names of whole modules that were trained beside the adapter.
    pub modules_to_save: Vec<String>,
    /// True if the model's weights are stored as d_in × d_out.
    pub fan_in_fan_out: bool,
    /// Paths of parameters, or their ends, that have factors of their own.
    pub target_parameters: Vec<String>,
    /// Indices of trained tokens.
    pub token_indices: TokenIndices,
    /// True if biases were trained beside the factors.
    pub biases: bool,
    /// True if every layer has a magnitude of DoRA.
    pub dora: bool,
    /// Fields about the base model, kept as metadata.
    about: BTreeMap<String, String>,
    /// Remarks on fields that are not kept.
    notes: Vec<String>,
}

#[derive(Deserialize)]
struct Fields {
    peft_type: Option<String>,
    r: Option<usize>,
    alpha: Option<f64>,
    lora_alpha: Option<f64>,
    rank_pattern: Option<IndexMap<String, usize>>,
    alpha_pattern: Option<IndexMap<String, f64>>,
    target_modules: Option<Value>,
    modules_to_save: Option<Vec<String>>,
    use_rslora: Option<bool>,
    fan_in_fan_out: Option<bool>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// Fields about the base model, kept as the adapter's metadata.
const METADATA_FIELDS: [&str; 3] = ["base_model_name_or_path", "task_type", "revision"];

/// Fields about training, starting or choosing the adapter, without effect on ΔW.
const IGNORED_FIELDS: [&str; 25] = [
    "auto_mapping",
    "bias",
    "corda_config",
    "decompose_both",
    "decompose_factor",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "module_dropout",
    "peft_version",
    "qalora_group_size",
    "rank_dropout",
    "rank_dropout_scale",
    "runtime_config",
    "trainable_token_indices",
    "use_effective_conv2d",
    "velora_config",
];

/// Fields about tensors beyond ΔW, which a merge folds.
const MERGED_FIELDS: [&str; 3] = ["lora_bias", "target_parameters", "use_dora"];

impl Config {
    /// Parses and checks the file's text; patterns are compiled into at most `limit` bytes.
    pub fn parse(text: &[u8], limit: usize, scope: Scope) -> Result<Self> {
        // A descriptive field may be NaN; one that counts is missing then.
        let text = &*without_nan(text);
        let fields: Fields = serde_json::from_slice(text).map_err(|e| {
            Error::data(format!("it is not an adapter's configuration: {}", json_fault(text, &e)))
        })?;
        let kind = match fields.peft_type.as_deref() {
            Some("LORA") => Kind::Lora,
            Some("LOKR") => Kind::Lokr,
            Some(other) => {
                return Err(Error::data(format!(
                    "peft_type is {}, but LORA and LOKR are what is read",
                    shown(other)
                )));
            }
            None => return Err(Error::data("it has no peft_type, which is LORA or LOKR")),
        };
        fields.rest.iter().try_for_each(|(name, value)| check(name, value, scope))?;
        let (method, name, alpha, other, of_other) = match kind {
            Kind::Lora => ("LoRA", "lora_alpha", fields.lora_alpha, "alpha", fields.alpha),
            Kind::Lokr => ("LoKr", "alpha", fields.alpha, "lora_alpha", fields.lora_alpha),
        };
        if of_other.is_some() {
            return Err(Error::data(format!("it has {other}, but {method} uses {name}")));
        }
        let about = METADATA_FIELDS
            .iter()
            .filter_map(|name| Some((name.to_string(), fields.rest.get(*name)?.as_str()?.into())));
        let (target_modules, notes) = targets(fields.target_modules.unwrap_or_default());
        let bias =
            fields.rest.get("bias").and_then(Value::as_str).filter(|bias| !["", "none"].contains(bias));
        let (ranks, alphas) =
            (fields.rank_pattern.unwrap_or_default(), fields.alpha_pattern.unwrap_or_default());
        let maps = if ranks.is_empty() || alphas.is_empty() { 1 } else { 2 };
        Ok(Self {
            kind,
            rank: fields.r.ok_or_else(|| Error::data("it has no r, the rank that alpha is divided by"))?,
            alpha: alpha
                .ok_or_else(|| Error::data(format!("it has no {name}, from which the scale comes")))?,
            ranks: compile(ranks, limit, maps)?,
            alphas: compile(alphas, limit, maps)?,
            rule: match (kind, fields.use_rslora) {
                (_, None | Some(false)) => ScaleRule::AlphaOverR,
                (Kind::Lora, Some(true)) => ScaleRule::AlphaOverSqrtR,
                (Kind::Lokr, Some(true)) => {
                    return Err(Error::data("use_rslora is true, which LoKr does not have"));
                }
            },
            target_modules,
            bias: bias.map(Into::into),
            modules_to_save: fields.modules_to_save.unwrap_or_default(),
            fan_in_fan_out: fields.fan_in_fan_out.unwrap_or(false),
            target_parameters: fields.rest.get("target_parameters").map_or_else(Vec::new, texts),
            token_indices: fields
                .rest
                .get("trainable_token_indices")
                .map_or(Ok(TokenIndices::new()), indices)?,
            biases: bias.is_some(),
            dora: fields.rest.get("use_dora") == Some(&Value::Bool(true)),
            about: about.collect(),
            notes,
        })
    }

    /// Makes the adapter of these layers, with the fields about the base model.
    pub fn adapter(&self, folder: &Path, layers: Vec<Layer>) -> Result<Adapter> {
        Adapter::new(layers)
            .and_then(|a| a.with_target_modules(self.target_modules.clone()))
            .and_then(|a| a.with_metadata(self.about.clone()))
            .map_err(|e| e.about(folder.display()))
    }

    /// Returns the fields about trained tensors.
    pub fn wanted(&self) -> saved::Wanted<'_> {
        saved::Wanted { modules: &self.modules_to_save, biases: self.biases, tokens: &self.token_indices }
    }

    /// Returns alpha, rank and rule of a module; alpha is rounded to float32, as s is everywhere.
    pub fn scaling(&self, module: &str) -> Result<Scaling> {
        let rank = self.ranks.lookup(module)?.unwrap_or(self.rank);
        let alpha = self.alphas.lookup(module)?.unwrap_or(self.alpha);
        let scaling = Scaling::new(alpha as f32, rank, self.rule);
        scaling.map_err(|e| e.about(format_args!("layer {}", text::name(module))))
    }

    /// Returns remarks on fields without effect, after the scales of all layers were asked for; of a chosen part of the
    /// tensors, `None`, nothing says which fields the others need.
    pub fn notes(&self, tensors: Option<&[String]>) -> Vec<String> {
        let mut notes = self.notes.clone();
        let Some(tensors) = tensors else { return notes };
        let unused = [
            ("rank_pattern", first_shown(self.ranks.unused())),
            ("alpha_pattern", first_shown(self.alphas.unused())),
        ];
        notes.extend(unused.into_iter().filter_map(|(field, keys)| {
            Some(format!("{field} has patterns that decide for no layer: {}", keys?))
        }));
        if let Some(bias) = self.bias.as_ref().filter(|_| !tensors.iter().any(|name| name.ends_with(".bias")))
        {
            notes.push(format!("bias is {}, but the file has no bias", shown(bias)));
        }
        notes
    }
}

fn first_shown<'a>(keys: impl Iterator<Item = &'a str>) -> Option<String> {
    text::first_and_more(keys.map(shown))
}

/// Returns the names or patterns of `target_modules` that an adapter keeps, and a note where it keeps not all: they
/// only describe how the layers were chosen.
fn targets(value: Value) -> (Vec<String>, Vec<String>) {
    let all = match value {
        Value::Null => Vec::new(),
        Value::Array(values) => values,
        one => vec![one],
    };
    let count = all.len();
    let names = all.into_iter().filter_map(|value| match value {
        Value::String(name) if is_target(&name) => Some(name),
        _ => None,
    });
    let names: Vec<String> = names.collect();
    let note = (names.len() < count).then(|| {
        "target_modules is not kept where it is empty, longer than a name, or of several lines; the layers are those of the weights"
            .to_string()
    });
    (names, note.into_iter().collect())
}

/// Returns the texts of a list.
fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect()
}

/// True for a field that changes nothing.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(v) => !v,
        Value::Number(v) => v.as_f64() == Some(0.0),
        Value::String(v) => v.is_empty(),
        Value::Array(v) => v.is_empty(),
        Value::Object(v) => v.is_empty(),
    }
}

/// Fails if a field that is not read here may change ΔW.
fn check(name: &str, value: &Value, scope: Scope) -> Result<()> {
    if is_unset(value) || IGNORED_FIELDS.contains(&name) || METADATA_FIELDS.contains(&name) {
        return Ok(());
    }
    if scope != Scope::Delta && MERGED_FIELDS.contains(&name) {
        return Ok(());
    }
    let start = ["gaussian", "orthogonal", "eva", "mica"];
    if name == "init_lora_weights" && (*value == true || value.as_str().is_some_and(|v| start.contains(&v))) {
        return Ok(());
    }
    let why = match name {
        "lora_bias" => "trained biases have no place in ΔW",
        "use_dora" => "DoRA rescales the whole weight, which ΔW cannot express",
        "init_lora_weights" => "this start changes the base weights, so ΔW alone is not the change",
        _ => "it may change the layer in a way that ΔW = s·A ⊗ (B·C) does not express",
    };
    let value: String = value.to_string().chars().take(60).collect();
    Err(Error::data(format!("{} is {value}, which is refused: {why}", text::name(name))))
}

/// Encodes a configuration: the fields that every method has, then the method's own; `is_lora` tells which has biases.
pub fn encoded(adapter: &Adapter, own: Value, is_lora: bool) -> Result<Vec<u8>> {
    let modules: Vec<&str> = adapter.layers().iter().map(Layer::module).collect();
    let saved = saved::saved_modules(adapter, is_lora)?;
    let mut fields = Map::from_iter([
        ("auto_mapping".to_string(), Value::Null),
        ("exclude_modules".into(), Value::Null),
        ("inference_mode".into(), json!(true)),
        ("layers_pattern".into(), Value::Null),
        ("layers_to_transform".into(), Value::Null),
        ("modules_to_save".into(), if saved.is_empty() { Value::Null } else { json!(saved) }),
        ("target_modules".into(), json!(modules)),
    ]);

    for name in METADATA_FIELDS {
        fields.insert(name.into(), adapter.metadata().get(name).map_or(Value::Null, |v| json!(v)));
    }
    if let Value::Object(own) = own {
        fields.extend(own);
    }
    let mut text = serde_json::to_vec_pretty(&fields)
        .map_err(|e| Error::data(format!("the configuration has no JSON form: {e}")))?;
    text.push(b'\n');
    Ok(text)
}

/// Returns a JSON number: an integer if the value is one, as PEFT's annotations require.
pub fn number(v: f64) -> Value {
    if v.fract() == 0.0 && v.abs() < 2f64.powi(53) { json!(v as i64) } else { json!(v) }
}

/// Returns the bits of a value; both zeros have the same.
pub const fn bits(v: f64) -> u64 {
    (v + 0.0).to_bits()
}

/// Returns the float64 with the float32's shortest decimal: 0.1 and not 0.10000000149.
pub fn shortest(v: f32) -> f64 {
    v.to_string().parse().unwrap_or(f64::from(v))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The patterns of ranks and those of alphas take one allowance together.
    #[test]
    fn both_maps_of_patterns_share_their_limit() {
        let map = |count: usize| -> serde_json::Map<String, Value> {
            (0..count).map(|i| (format!(".*{i:06}"), 8.into())).collect()
        };
        let parse = |ranks: usize, alphas: usize| {
            let config = json!({ "peft_type": "LORA", "r": 8, "lora_alpha": 8,
                "rank_pattern": map(ranks), "alpha_pattern": map(alphas) });
            let parsed = Config::parse(config.to_string().as_bytes(), 64 << 20, Scope::Delta);
            parsed.map(drop).map_err(|e| e.to_string())
        };
        assert!(parse(1800, 0).is_ok() && parse(0, 1800).is_ok() && parse(900, 900).is_ok());
        assert!(parse(1800, 1800).unwrap_err().contains("with 2 maps of patterns"));
        assert!(parse(1800, 1).is_err() && parse(2200, 0).is_err());
    }
}
