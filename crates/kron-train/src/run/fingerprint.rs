//! [`Fingerprint`]: program, settings, data and weights, which all ranks of a run have in common.

use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use crate::config::Config;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::model::Weights;
use crate::ranks::World;

use super::learner::NamedGroup;

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Fingerprint {
    program: String,
    settings: String,
    data: u64,
    weights: u64,
}

/// Fails on every rank if one of them differs from the first.
pub(super) fn check_equal(world: &World, config: &Config, data: &Dataset, weights: &Weights) -> Result<()> {
    if world.count() == 1 {
        return Ok(());
    }
    let all = world.gather("start of the run", Fingerprint::new(config, data, weights))?;
    let others = all.iter().enumerate().skip(1);
    let mut differ = others.filter_map(|(rank, other)| Some((rank, all[0].differs(other)?)));
    // Every rank finds the same one.
    match differ.next() {
        None => Ok(()),
        Some((rank, how)) => world.fail(Error::Rank(format!("rank {rank} has {how}"))),
    }
}

/// Fails on every rank if a rank failed at `written`, or has other trained parameters than the first.
///
/// They drift apart where hosts with other processors round a product otherwise.
pub(super) fn check_equal_values(world: &World, trained: &[NamedGroup], written: Result<()>) -> Result<()> {
    if world.count() == 1 {
        return written;
    }
    let hashed = written.and_then(|()| {
        let mut hash = Xxh3Default::new();
        for (_, group) in trained {
            let values = group.var().flatten_all()?.to_vec1::<f32>()?;
            hash.update(bytemuck::cast_slice(&values));
        }
        Ok(hash.finish())
    });
    let all = world.gather("trained parameters", hashed)?;
    match all.iter().position(|hash| *hash != all[0]) {
        None => Ok(()),
        Some(rank) => world.fail(Error::Rank(format!(
            "rank {rank} has other trained parameters than rank 0: their processors compute in other ways"
        ))),
    }
}

impl Fingerprint {
    fn new(config: &Config, data: &Dataset, weights: &Weights) -> Result<Self> {
        let mut hash = Xxh3Default::new();
        data.hash(&mut hash);
        // A program that cannot be read has its version alone.
        let own = std::env::current_exe().and_then(std::fs::read).map(|bytes| xxh3_64(&bytes)).unwrap_or(0);
        let program = format!("{} {own:016x}", env!("CARGO_PKG_VERSION"));
        Ok(Self { program, settings: config.text()?, data: hash.finish(), weights: weights.fingerprint()? })
    }

    /// Says in what another one differs.
    fn differs(&self, other: &Self) -> Option<String> {
        let lines = || self.settings.lines().zip(other.settings.lines()).find(|(a, b)| a != b);
        if self.program != other.program {
            return Some(format!("the program {}, but rank 0 {}", other.program, self.program));
        }
        if self.settings != other.settings {
            let (ours, theirs) = lines().unwrap_or(("fewer settings", "more settings"));
            return Some(format!("{theirs:?}, but rank 0 {ours:?}"));
        }
        if self.data != other.data {
            return Some("other examples than rank 0".into());
        }
        (self.weights != other.weights).then(|| "other weights than rank 0".into())
    }
}
