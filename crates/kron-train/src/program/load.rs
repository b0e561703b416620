//! Reading of a model.

use std::path::PathBuf;

use crate::config::Config;
use crate::data::Tokenizer;
use crate::error::Result;
use crate::model::{Files, Weights};

/// Reads the model and its tokenizer, and checks that they belong together.
pub fn load(config: &Config) -> Result<(Weights, Tokenizer)> {
    let files = Files::find(&config.model)?;
    let tokenizer: &PathBuf = config.tokenizer.as_ref().unwrap_or(&files.tokenizer);
    let (weights, tokenizer) = (Weights::read_for(&files, config.compute)?, Tokenizer::read(tokenizer)?);
    tokenizer.check_fits(weights.vocabulary())?;
    Ok((weights, tokenizer))
}
