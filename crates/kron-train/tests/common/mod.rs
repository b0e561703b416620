//! Paths of the test data, and settings of runs that take a second or two.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use kron_train::config::{AdapterConfig, Config, Data, Method, Train};
use kron_train::data::{Dataset, Tokenizer};
use kron_train::model::{Files, Weights};

pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Settings for the small decoder on a few of SNIPS' seven intents.
pub fn config(method: Method) -> Config {
    Config {
        model: data("stories260K.bin"),
        data: Data {
            train: data("snips.train.jsonl"),
            validation: Some(data("snips.test.jsonl")),
            limit_train: 48,
            limit_eval: 28,
            max_len: 48,
            ..Data::default()
        },
        adapter: AdapterConfig { method, a_in: 2, a_out: 4, rank: 4, alpha: 8.0, ..AdapterConfig::default() },
        train: Train { epochs: 2, batch: 8, lr: 5e-3, save_every: 1, ..Train::default() },
        ..Config::default()
    }
}

pub fn load(config: &Config) -> (Weights, Dataset) {
    let files = Files::find(&config.model).expect("a model");
    let tokenizer = Tokenizer::read(&files.tokenizer).expect("a tokenizer");
    let weights = Weights::read_for(&files, config.compute).expect("weights");
    tokenizer.check_fits(weights.vocabulary()).expect("its own tokenizer");
    let data = Dataset::read(config, &tokenizer).expect("data");
    (weights, data)
}

/// Finds MiniLM in the folder of `scripts/fetch-minilm.sh`, or in that of `.ci/run`.
pub fn minilm() -> Option<PathBuf> {
    let name = "all-MiniLM-L6-v2";
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(name);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let folders = [Some(models), cache.map(|cache| cache.join("kron-lora").join(name))];
    folders.into_iter().flatten().find(|folder| folder.join("model.safetensors").exists())
}
