//! Reading of a model.

use std::path::PathBuf;

use kron_candle::models::BlocksByName;

use crate::compute::Compute;
use crate::config::Config;
use crate::data::Tokenizer;
use crate::error::Result;
use crate::model::{Files, Weights};
use crate::ranks::{World, local_rank};
use crate::sealed::host;

/// Reads the model and its tokenizer, and checks that they belong together. Where the device is a GPU, each of the
/// processes that a launcher starts on a host has a GPU of its own.
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
    let compute = Compute { device: config.compute.device.of_rank(local_rank())?, ..config.compute };
    let (weights, tokenizer) = (Weights::read_without(&files, compute, given)?, Tokenizer::read(tokenizer)?);
    tokenizer.check_fits(weights.vocabulary())?;
    Ok((weights, tokenizer))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::compute::{Compute, Precision};
    use crate::ranks::in_threads;

    /// Returns the number of maps of each sealed memory of this process, by its inode.
    fn maps() -> HashMap<String, usize> {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("the process's maps");
        let mut counts = HashMap::new();
        for line in maps.lines().filter(|line| line.contains("memfd:frozen weights")) {
            *counts.entry(line.split_whitespace().nth(4).expect("an inode").to_owned()).or_default() += 1;
        }
        counts
    }

    /// Each of three ranks maps the memory of the first, and has the weights of a rank that is alone.
    #[test]
    fn the_ranks_of_a_host_map_the_memory_of_the_first() -> Result<()> {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let config = Config {
            model: data.join("stories260K.bin"),
            compute: Compute { precision: Precision::Bf16, ..Compute::default() },
            ..Config::default()
        };
        let want = load(&config)?.0.fingerprint()?;
        let all = in_threads(3, Duration::from_secs(60), |world| {
            let (weights, _) = load_over(&world, &config)?;
            world.gather("all have loaded", Ok(()))?;
            let counts = maps();
            world.gather("all have counted", Ok(()))?;
            Ok((weights.fingerprint()?, counts.values().copied().max()))
        });
        for one in all {
            assert_eq!(one?, (want, Some(3)));
        }
        Ok(())
    }
}
