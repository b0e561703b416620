//! Reading of a model.

use std::path::PathBuf;

use kron_candle::models::BlocksByName;

use crate::config::Config;
use crate::data::Tokenizer;
use crate::error::Result;
use crate::model::{Files, Weights};
use crate::ranks::World;
use crate::sealed::host;

/// Reads the model and its tokenizer, and checks that they belong together.
pub fn load(config: &Config) -> Result<(Weights, Tokenizer)> {
    load_without(config, BlocksByName::new())
}

/// Reads the model and its tokenizer on every rank; the ranks of a host have the matrices that stay as their file has
/// them in memory once.
///
/// The first rank of each host reads them, and the others map its memory. Where the system does not let them, each
/// has its own.
pub fn load_over(world: &World, config: &Config) -> Result<(Weights, Tokenizer)> {
    let hosts = world.gather("names of the hosts", Ok(host()))?;
    let own = hosts.get(world.rank()).and_then(Option::as_ref);
    let neighbours: Vec<usize> = match own {
        Some(own) => (0..hosts.len()).filter(|rank| hosts[*rank].as_ref() == Some(own)).collect(),
        None => vec![world.rank()],
    };
    let first = neighbours[0];
    let read = || match first == world.rank() {
        true => {
            let (mut weights, tokenizer) = load(config)?;
            let shared = if neighbours.len() > 1 { weights.share_blocks()? } else { None };
            Ok((Some((weights, tokenizer)), shared))
        }
        false => Ok((None, None)),
    };
    let (loaded, shared) = world.together("model", read())?;
    let (places, memory) = shared.unzip();
    let places = world.gather("places of the frozen weights", Ok(places))?;
    let given = || places[first].as_ref().and_then(|places| places.open().ok()).unwrap_or_default();
    let loaded = loaded.map_or_else(|| load_without(config, given()), Ok);
    let loaded = world.together("model of the other ranks", loaded);
    // By now every rank has opened it.
    drop(memory);
    loaded
}

fn load_without(config: &Config, given: BlocksByName) -> Result<(Weights, Tokenizer)> {
    let files = Files::find(&config.model)?;
    let tokenizer: &PathBuf = config.tokenizer.as_ref().unwrap_or(&files.tokenizer);
    let (weights, tokenizer) =
        (Weights::read_without(&files, config.compute, given)?, Tokenizer::read(tokenizer)?);
    tokenizer.check_fits(weights.vocabulary())?;
    Ok((weights, tokenizer))
}
