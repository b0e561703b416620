//! The adapter that is folded: a file of ours, or a PEFT folder with LoRA or LoKr.

use std::collections::BTreeMap;
use std::path::Path;

use kron_core::{Adapter, Inner, KronShape, Layer, Outer, ScaleRule, Scaling, Theta};
use serde::Deserialize;
use serde_json::Value;

use super::base::Base;
use super::data;
use crate::{Error, Result, Tensors, files};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

/// Reads an adapter.
///
/// # Errors
/// A file that is damaged or in no known format, whatever ΔW = s·A ⊗ (B·C)
/// cannot say, by name, and an adapter of transposed weights for a base without them.
pub fn read(path: &Path, base: &Base) -> Result<Adapter> {
    if !path.is_dir() {
        return Adapter::read(path).map_err(data);
    }
    let config = path.join(CONFIG);
    let config: Config = serde_json::from_slice(&files::read(&config, 1 << 24)?)
        .map_err(|e| Error::data(format!("{} is no configuration of an adapter: {e}", config.display())))?;
    let peft = Peft { tensors: Tensors::read(&path.join(WEIGHTS))?, config };
    peft.config.check(peft.tensors.path())?;
    let layers = peft.layers()?;
    // A square weight would take the wrong ΔW without a word.
    if let Some(layer) =
        layers.iter().find(|layer| peft.config.fan_in_fan_out && !base.transposed(layer.module()))
    {
        return Err(Error::data(format!(
            "{}: fan_in_fan_out is true, but {} does not say that the weight of {} is stored transposed",
            peft.tensors.path(),
            base.path(),
            layer.module()
        )));
    }
    Adapter::new(layers).map_err(data)
}

#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    #[serde(alias = "lora_alpha")]
    alpha: f32,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f32>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    /// Fields that change ΔW where they are on.
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

impl Config {
    fn check(&self, path: &str) -> Result<()> {
        if self.peft_type != "LORA" && self.peft_type != "LOKR" {
            return Err(Error::data(format!(
                "{path}: peft_type is {:?}, but only LORA and LOKR can be merged",
                self.peft_type
            )));
        }
        for field in [
            "use_dora",
            "use_qalora",
            "use_bdlora",
            "alora_invocation_tokens",
            "layer_replication",
            "lora_bias",
        ] {
            match self.rest.get(field) {
                None | Some(Value::Null | Value::Bool(false)) => {}
                Some(value) => {
                    return Err(Error::data(format!(
                        "{path}: {field} is {value}, which is no sum W + s·A ⊗ (B·C)"
                    )));
                }
            }
        }
        let regular = |key: &&String| !key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        match self.rank_pattern.keys().chain(self.alpha_pattern.keys()).find(regular) {
            Some(key) => Err(Error::data(format!(
                "{path}: the pattern {key:?} is not a plain name, and only those are read"
            ))),
            None => Ok(()),
        }
    }

    fn scaling(&self, module: &str) -> Result<Scaling> {
        let rank = matching(&self.rank_pattern, module).unwrap_or(self.r);
        let alpha = matching(&self.alpha_pattern, module).unwrap_or(self.alpha);
        let rule = if self.use_rslora { ScaleRule::AlphaOverSqrtR } else { ScaleRule::AlphaOverR };
        Scaling::new(alpha, rank, rule).map_err(data)
    }
}

/// A pattern is a module's whole name or its last parts.
fn matching<T: Copy>(patterns: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let fits =
        |key: &str| module.strip_suffix(key).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    patterns.iter().find(|(key, _)| fits(key)).map(|(_, &value)| value)
}

struct Peft {
    tensors: Tensors,
    config: Config,
}

/// Row-major.
struct Matrix {
    rows: usize,
    columns: usize,
    numbers: Vec<f32>,
}

impl Peft {
    fn layers(&self) -> Result<Vec<Layer>> {
        let mut modules: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for name in self.tensors.names() {
            let (module, part) = self.split(&name)?;
            modules.entry(module).or_default().push(part);
        }
        modules.iter().map(|(module, parts)| self.layer(module, parts)).collect()
    }

    /// `base_model.model.<module>.<part>`.
    fn split(&self, name: &str) -> Result<(String, String)> {
        let known = match self.config.peft_type.as_str() {
            "LORA" => &["lora_A.weight", "lora_B.weight"][..],
            _ => &["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"][..],
        };
        let inside = name.strip_prefix("base_model.model.");
        let found = inside.and_then(|inside| {
            known.iter().find_map(|part| Some((inside.strip_suffix(part)?.strip_suffix('.')?, *part)))
        });
        found.map(|(module, part)| (module.into(), part.into())).ok_or_else(|| {
            let path = self.tensors.path();
            Error::data(format!("{path}: tensor {name:?} is no factor of {}", self.config.peft_type))
        })
    }

    fn layer(&self, module: &str, parts: &[String]) -> Result<Layer> {
        let has = |part: &str| parts.iter().any(|p| p == part);
        let get = |part: &str| self.matrix(module, part);
        let (a, inner, b, c) = if self.config.peft_type == "LORA" {
            let (b, c) = (get("lora_B.weight")?, get("lora_A.weight")?);
            (None, Inner::LowRank(c.rows), Some(b), c)
        } else {
            let a = if has("lokr_w1") {
                get("lokr_w1")?
            } else {
                self.product(module, "lokr_w1_a", "lokr_w1_b")?
            };
            match has("lokr_w2") {
                true => (Some(a), Inner::Full, None, get("lokr_w2")?),
                false => {
                    let (b, c) = (get("lokr_w2_a")?, get("lokr_w2_b")?);
                    (Some(a), Inner::LowRank(c.rows), Some(b), c)
                }
            }
        };
        let (a_out, a_in) = a.as_ref().map_or((1, 1), |a| (a.rows, a.columns));
        let outer = if a.is_some() { Outer::Trained } else { Outer::One };
        let d_out = a_out.saturating_mul(b.as_ref().map_or(c.rows, |b| b.rows));
        let refused = |e: kron_core::Error| Error::data(format!("{}: {module}: {e}", self.tensors.path()));
        let shape = KronShape::new(d_out, a_in.saturating_mul(c.columns), a_out, a_in, outer, inner)
            .map_err(refused)?;
        let numbers = |m: Option<Matrix>| m.map(|m| m.numbers).unwrap_or_default();
        let theta = Theta::from_factors(shape, &numbers(a), &numbers(b), &c.numbers).map_err(refused)?;
        if let Some(v) = theta.as_slice().iter().find(|v| !v.is_finite()) {
            return Err(Error::data(format!(
                "{}: a number of {module} is {v}, but every number of a factor is finite",
                self.tensors.path()
            )));
        }
        Layer::new(module, self.config.scaling(module)?, theta).map_err(refused)
    }

    fn matrix(&self, module: &str, part: &str) -> Result<Matrix> {
        let name = format!("base_model.model.{module}.{part}");
        match self.tensors.info(&name)?.shape[..] {
            [rows, columns] => {
                let numbers = self.tensors.numbers(&name)?.into_iter().map(|v| v as f32).collect();
                Ok(Matrix { rows, columns, numbers })
            }
            ref shape => Err(Error::data(format!(
                "{}: {name} is {shape:?}, but a factor is a matrix",
                self.tensors.path()
            ))),
        }
    }

    fn product(&self, module: &str, left: &str, right: &str) -> Result<Matrix> {
        let (l, r) = (self.matrix(module, left)?, self.matrix(module, right)?);
        if l.columns != r.rows {
            return Err(Error::data(format!(
                "{}: {module}: {left} has {} columns, but {right} has {} rows",
                self.tensors.path(),
                l.columns,
                r.rows
            )));
        }
        let (rows, columns) = (l.rows, r.columns);
        let dot = |i: usize, j: usize| {
            (0..l.columns)
                .map(|k| f64::from(l.numbers[i * l.columns + k]) * f64::from(r.numbers[k * columns + j]))
                .sum::<f64>() as f32
        };
        let numbers = (0..rows * columns).map(|at| dot(at / columns, at % columns)).collect();
        Ok(Matrix { rows, columns, numbers })
    }
}
