//! A study's settings beside its rows: rows of other settings are no rows of this one.

use std::path::Path;

use kron_adapter::io::write_atomic;
use kron_candle::IfExists;
use serde::Deserialize;

use crate::compare::Entry;
use crate::config::Config;
use crate::error::{Result, file, invalid};

/// The part of a grid that decides what a row says; rates, seeds and orders stand in the row itself.
#[derive(Deserialize)]
struct Kept {
    base: Config,
    entries: Vec<Entry>,
}

/// Writes the grid to `folder/grid.toml`, in the place of an earlier one whose rows it can go on with.
///
/// # Errors
/// An earlier grid with another base, or with another adapter under an entry's name.
pub fn keep(folder: &Path, grid: &str, base: &Config, entries: &[Entry]) -> Result<()> {
    let path = folder.join("grid.toml");
    if path.exists() {
        let text = std::fs::read_to_string(&path).map_err(|e| file(&path, e))?;
        let kept: Kept = toml::from_str(&text).map_err(|e| file(&path, e))?;
        let (theirs, ours) = (kept.base.text()?, base.text()?);
        if let Some((theirs, ours)) = theirs.lines().zip(ours.lines()).find(|(a, b)| a != b) {
            return Err(other(folder, &format!("{theirs:?}, but this grid has {ours:?}")));
        }
        let changed =
            |new: &&Entry| kept.entries.iter().any(|e| e.name == new.name && e.adapter != new.adapter);
        if let Some(entry) = entries.iter().find(changed) {
            return Err(other(folder, &format!("another adapter for {:?}", entry.name)));
        }
    }
    Ok(write_atomic(&path, IfExists::Replace, |out| out.write_all(grid.as_bytes()))?)
}

fn other(folder: &Path, what: &str) -> crate::Error {
    invalid(format!("{} holds runs with {what}: take another folder", folder.display()))
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;
    use crate::config::AdapterConfig;

    #[derive(Serialize)]
    struct Grid {
        seeds: Vec<u64>,
        base: Config,
        entries: Vec<Entry>,
    }

    #[test]
    fn a_grid_may_grow_but_not_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let entry = |name: &str, rank| Entry {
            name: name.into(),
            rates: Vec::new(),
            adapter: AdapterConfig { rank, ..AdapterConfig::default() },
        };
        let keep = |grid: Grid| {
            keep(folder.path(), &toml::to_string(&grid).expect("TOML"), &grid.base, &grid.entries)
        };
        let base = Config::default();
        keep(Grid { seeds: vec![1], base: base.clone(), entries: vec![entry("a", 4)] })
            .expect("a first grid");
        let more = vec![entry("a", 4), entry("b", 8)];
        keep(Grid { seeds: vec![1, 2], base: base.clone(), entries: more }).expect("more of the same");
        let other = keep(Grid { seeds: vec![1], base: base.clone(), entries: vec![entry("b", 2)] });
        assert!(other.expect_err("other rows").to_string().contains("another adapter for \"b\""));
        let mut longer = base;
        longer.train.epochs = 9;
        let other = keep(Grid { seeds: vec![1], base: longer, entries: vec![entry("a", 4)] });
        let message = other.expect_err("other rows").to_string();
        assert!(message.contains("\"epochs = 3\", but this grid has \"epochs = 9\""), "{message}");
    }
}
