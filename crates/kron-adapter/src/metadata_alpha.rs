//! Scale of LoRAs whose file has no `alpha` beside them: it stands in the metadata, or alpha = r.
//!
//! diffusers writes PEFT's configuration of each part into `lora_adapter_metadata`, with the part's name before each
//! field: `{"transformer.r": 4, "transformer.lora_alpha": 8}`. Others write one number for all layers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::extras::Scope;
use crate::peft::{Config, pattern_limit};
use crate::text::shown;
use crate::{Error, Result, ScaleRule, Scaling, Tensors};

/// Key of diffusers' configurations.
const CONFIGS: &str = "lora_adapter_metadata";
/// Keys of one alpha for all layers.
const ALPHAS: [&str; 3] = ["alpha", "lora_alpha", "network_alpha"];
/// Key of the rank that Kohya's trainers and LyCORIS were given.
const RANK: &str = "ss_network_dim";

/// Alphas in the metadata, and the number of layers that took each.
pub struct MetadataAlpha {
    /// Configurations by the part's name, which is empty where one is for all.
    configs: BTreeMap<String, Config>,
    /// Key and value of one alpha for all layers.
    alpha: Option<(&'static str, f64)>,
    rank: Option<f64>,
    /// Modules whose configuration has DoRA.
    dora: Vec<String>,
    configured: usize,
    of_all: usize,
    missing: usize,
}

impl MetadataAlpha {
    /// Reads what a file's metadata says of the modules without an alpha of their own; without one, only the rank.
    ///
    /// # Errors
    /// Fails on a configuration of theirs that PEFT's reader refuses, on an alpha that is no number, and on two that
    /// differ.
    pub fn read<'a>(tensors: &Tensors, modules: impl Iterator<Item = &'a str>, scope: Scope) -> Result<Self> {
        let refused = |what: String| Error::data(format!("{}: the metadata {what}", tensors.path()));
        let rank = tensors.metadata(RANK).and_then(|text| text.trim().parse().ok());
        let mut read = Self {
            configs: BTreeMap::new(),
            alpha: None,
            rank,
            dora: Vec::new(),
            configured: 0,
            of_all: 0,
            missing: 0,
        };
        let parts: BTreeSet<&str> = modules.map(|module| part(module).0).collect();
        if parts.is_empty() {
            return Ok(read);
        }
        for key in ALPHAS {
            // Kohya's trainers write Python's None.
            let Some(text) = tensors.metadata(key).filter(|text| text.trim() != "None") else { continue };
            let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            let number = number
                .ok_or_else(|| refused(format!("{key} is {}, but an alpha is a number", shown(text))))?;
            if let Some((other, _)) = read.alpha.filter(|(_, other)| *other != number) {
                return Err(refused(format!("{key} is {number}, but {other} is another number")));
            }
            read.alpha = Some((key, number));
        }
        let configs =
            tensors.metadata(CONFIGS).map(|text| configs(text, &parts, pattern_limit(tensors), scope));
        let configs = configs.transpose().map_err(|e| e.about(CONFIGS).about(tensors.path()))?;
        read.configs = configs.unwrap_or_default();
        Ok(read)
    }

    /// Returns the scale of a LoRA without an alpha of its own.
    ///
    /// # Errors
    /// Fails if its part's configuration has another rank.
    pub fn scaling(&mut self, module: &str, rank: usize) -> Result<Scaling> {
        let (part, rest) = part(module);
        let of_part = self.configs.get(part).map(|config| (config, rest));
        if let Some((config, name)) = of_part.or_else(|| Some((self.configs.get("")?, module))) {
            self.configured += 1;
            if config.dora {
                self.dora.push(module.into());
            }
            let scaling = config.scaling(name)?;
            return match scaling.rank() == rank {
                true => Ok(scaling),
                false => Err(Error::data(format!(
                    "{module} has rank {rank}, but {CONFIGS} has r = {}",
                    scaling.rank()
                ))),
            };
        }
        // An alpha of 0 means the rank, as it does beside the factors.
        let alpha = match self.alpha.filter(|(_, alpha)| *alpha != 0.0) {
            Some((_, alpha)) => {
                self.of_all += 1;
                alpha as f32
            }
            None => {
                self.missing += 1;
                rank as f32
            }
        };
        Scaling::new(alpha, rank, ScaleRule::AlphaOverR)
    }

    /// Returns true if a configuration says that the model's weights are stored as d_in × d_out.
    pub fn fan_in_fan_out(&self) -> bool {
        self.configs.values().any(|config| config.fan_in_fan_out)
    }

    /// Returns the modules whose configuration has DoRA, so that they have a magnitude.
    pub fn dora(&self) -> &[String] {
        &self.dora
    }

    /// True if an alpha is not the rank that the file was trained with.
    pub fn is_other_rank(&self, alpha: Option<f64>) -> bool {
        alpha.zip(self.rank).is_some_and(|(alpha, rank)| alpha != 0.0 && alpha != rank)
    }

    /// Returns where the scales came from, one sentence each.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.configured > 0 {
            notes.extend(self.configs.values().flat_map(|config| config.notes(None)));
            notes.push(format!("the scales of {} layers come from the metadata {CONFIGS}", self.configured));
        }
        if let (1.., Some((key, alpha))) = (self.of_all, self.alpha) {
            notes.push(format!("alpha = {alpha} of {} layers comes from the metadata {key}", self.of_all));
        }
        if self.missing > 0 {
            notes.push(format!(
                "{} layers have no alpha, neither beside their factors nor in the metadata, so alpha = r and s = 1 are taken",
                self.missing
            ));
        }
        notes
    }
}

/// Returns the part of a model that a module belongs to, and the rest of its name.
fn part(module: &str) -> (&str, &str) {
    module.split_once('.').unwrap_or(("", module))
}

/// Takes the configurations of these parts apart, and that of no part; their patterns share `limit` bytes.
fn configs(text: &str, of: &BTreeSet<&str>, limit: usize, scope: Scope) -> Result<BTreeMap<String, Config>> {
    let fields: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| Error::data(format!("it is not a JSON object: {e}")))?;
    let mut parts: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for (key, value) in fields {
        let (part, field) = key.split_once('.').unwrap_or(("", &key));
        if part.is_empty() || of.contains(part) {
            parts.entry(part.into()).or_default().insert(field.into(), value);
        }
    }
    let share = limit / parts.len().max(1);
    let parsed = parts.into_iter().map(|(part, mut fields)| {
        fields.entry("peft_type").or_insert_with(|| "LORA".into());
        let text = serde_json::to_vec(&fields).map_err(|e| Error::data(e.to_string()))?;
        Ok((part, Config::parse(&text, share, scope)?))
    });
    parsed.collect()
}
