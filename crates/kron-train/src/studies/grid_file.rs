//! Grid file in a study's output folder, which guards its rows against a change of settings.

use std::collections::HashSet;
use std::path::Path;

use kron_adapter::io::{self, write_atomic};
use kron_candle::IfExists;
use serde::{Deserialize, Serialize};

use super::shared_study;
use crate::config::{AdapterConfig, Config};
use crate::error::{Result, invalid};
use crate::files;
use crate::output;

/// Name of the file of a study's grid.
const GRID: &str = "grid.toml";
/// Name of a study's page.
const REPORT: &str = "report.html";
/// Largest number of runs of a grid.
pub const MAX_RUNS: usize = 100_000;

/// Method of a grid: one row of its result table.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name in the tables.
    pub name: String,
    /// Learning rates that replace the grid's.
    #[serde(alias = "rates", default, skip_serializing_if = "Vec::is_empty")]
    pub lrs: Vec<f64>,
    /// Budgets of parameters that replace the grid's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<u64>,
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
        files::toml(path)
    }
}

/// Fails if two entries have one name, which their rows would share, or the reference is not an entry.
///
/// # Errors
/// The first such name.
pub(super) fn check_entries(entries: &[Entry], reference: &str) -> Result<()> {
    let mut names = HashSet::new();
    if let Some(entry) = entries.iter().find(|entry| !names.insert(entry.name.as_str())) {
        return Err(invalid(format!("has two entries {:?}, but each has a name of its own", entry.name)));
    }
    match names.contains(reference) {
        true => Ok(()),
        false => Err(invalid(format!("has reference {reference:?}, which is not one of its entries"))),
    }
}

/// Fails if a grid has too many runs, the product of the numbers.
///
/// # Errors
/// The number of runs and its limit.
pub(super) fn check_runs(numbers: [usize; 3]) -> Result<()> {
    match numbers.into_iter().fold(1usize, usize::saturating_mul) {
        0..=MAX_RUNS => Ok(()),
        n => Err(invalid(format!("has {n} runs, but a grid has at most {MAX_RUNS}"))),
    }
}

/// Creates the folder and writes the grid to `folder/grid.toml`, after checking that the folder holds nothing
/// but files of the study, and that an earlier grid there is compatible.
///
/// `is_own` returns `true` for a name that the study uses besides those of the grid and the report.
///
/// # Errors
/// Another process writes there, the folder holds something else or an input, or the earlier grid has another base or
/// another adapter under an entry's name.
pub(super) fn check_and_save(
    folder: &Path,
    grid: &str,
    base: &Config,
    entries: &[Entry],
    is_own: impl Fn(&str) -> bool,
) -> Result<()> {
    output::create(folder, base)?;
    let _lock = shared_study::lock(folder)?;
    let (path, names) = (folder.join(GRID), output::contents(folder)?);
    let has_grid = names.iter().any(|name| name == GRID);
    let foreign = names.iter().any(|name| name != GRID && name != REPORT && !is_own(name));
    if foreign || (!names.is_empty() && !has_grid) {
        return Err(output::taken(folder, &names, "a study takes an empty folder, or its own"));
    }
    if has_grid {
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

/// Returns true if the folder's grid is this one: another process may have saved one with more runs.
///
/// # Errors
/// The file cannot be read.
pub(super) fn is_saved(folder: &Path, grid: &str) -> Result<bool> {
    let path = folder.join(GRID);
    Ok(io::read(&path, files::MAX_SETTINGS)? == grid.as_bytes())
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
            budgets: Vec::new(),
            adapter: AdapterConfig { rank, ..AdapterConfig::default() },
        };
        let save = |grid: Grid| {
            let text = toml::to_string(&grid).expect("TOML");
            check_and_save(folder.path(), &text, &grid.base, &grid.entries, |name| name == "rows.csv")
                .map(drop)
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
        let base = Config::default();
        let save = || save(Grid { seeds: vec![1], base: base.clone(), entries: vec![entry("a", 4)] });
        std::fs::write(folder.path().join("rows.csv"), "").expect("written");
        save().expect("the study's own rows");
        std::fs::write(folder.path().join("notes.md"), "mine").expect("written");
        let message = save().expect_err("somebody's file").to_string();
        assert!(
            message.contains("holds \"grid.toml\", \"notes.md\", \"rows.csv\", but a study"),
            "{message}"
        );
        std::fs::remove_file(folder.path().join("notes.md")).expect("a file");
        std::fs::remove_file(folder.path().join("grid.toml")).expect("a file");
        assert!(save().expect_err("rows of an unknown grid").to_string().contains("rows.csv"));
    }
}
