//! Grid file in a study's output folder, which guards its rows against a change of settings.

use std::path::Path;

use kron_adapter::io::write_atomic;
use kron_candle::IfExists;
use serde::{Deserialize, Serialize};

use crate::config::{AdapterConfig, Config};
use crate::error::{Result, file, invalid};

/// Method of a grid: one row of its result table.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name in the tables.
    pub name: String,
    /// Learning rates that replace the grid's.
    #[serde(alias = "rates", default, skip_serializing_if = "Vec::is_empty")]
    pub lrs: Vec<f64>,
    /// Method and shape.
    pub adapter: AdapterConfig,
}

/// Settings of a grid that its rows do not repeat; learning rates, seeds and orders are columns of the rows.
#[derive(Deserialize)]
struct GridFile {
    base: Config,
    entries: Vec<Entry>,
}

impl GridFile {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| file(path, e))?;
        toml::from_str(&text).map_err(|e| file(path, e))
    }
}

/// Writes the grid to `folder/grid.toml`, after checking that an earlier grid there is compatible.
///
/// # Errors
/// The earlier grid has another base, or another adapter under an entry's name.
pub(super) fn check_and_save(folder: &Path, grid: &str, base: &Config, entries: &[Entry]) -> Result<()> {
    let path = folder.join("grid.toml");
    if path.exists() {
        let earlier = GridFile::read(&path)?;
        let (theirs, ours) = (earlier.base.text()?, base.text()?);
        if let Some((theirs, ours)) = theirs.lines().zip(ours.lines()).find(|(a, b)| a != b) {
            return Err(other(folder, &format!("{theirs:?}, but this grid has {ours:?}")));
        }
        let changed =
            |new: &&Entry| earlier.entries.iter().any(|e| e.name == new.name && e.adapter != new.adapter);
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
    use super::*;

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
            lrs: Vec::new(),
            adapter: AdapterConfig { rank, ..AdapterConfig::default() },
        };
        let save = |grid: Grid| {
            check_and_save(folder.path(), &toml::to_string(&grid).expect("TOML"), &grid.base, &grid.entries)
        };
        let base = Config::default();
        save(Grid { seeds: vec![1], base: base.clone(), entries: vec![entry("a", 4)] })
            .expect("a first grid");
        let more = vec![entry("a", 4), entry("b", 8)];
        save(Grid { seeds: vec![1, 2], base: base.clone(), entries: more }).expect("more of the same");
        let other = save(Grid { seeds: vec![1], base: base.clone(), entries: vec![entry("b", 2)] });
        assert!(other.expect_err("other rows").to_string().contains("another adapter for \"b\""));
        let mut longer = base;
        longer.train.epochs = 9;
        let other = save(Grid { seeds: vec![1], base: longer, entries: vec![entry("a", 4)] });
        let message = other.expect_err("other rows").to_string();
        assert!(message.contains("\"epochs = 3\", but this grid has \"epochs = 9\""), "{message}");
    }
}
