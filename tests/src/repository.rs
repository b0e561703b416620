//! The repository as text and as packages, for the tests that check its own rules.

use std::fs;
use std::path::{Path, PathBuf};

use toml::Table;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository").to_path_buf()
}

/// A member of the workspace.
pub struct Member {
    /// Its folder, from the root.
    pub folder: String,
    /// The package's name.
    pub name: String,
    /// Its Cargo.toml.
    pub manifest: Table,
    /// Names of all its dependencies, those of tests and build scripts too.
    pub dependencies: Vec<String>,
}

/// Every member of the workspace.
pub fn members() -> Vec<Member> {
    let workspace = manifest(&root());
    let folders = workspace["workspace"]["members"].as_array().expect("a list of members");
    let member = |folder: &toml::Value| {
        let folder = folder.as_str().expect("a path").to_owned();
        let manifest = manifest(&root().join(&folder));
        let name = manifest["package"]["name"].as_str().expect("a name").to_owned();
        let sections = ["dependencies", "dev-dependencies", "build-dependencies"].map(|s| manifest.get(s));
        let tables = sections.into_iter().flatten().filter_map(toml::Value::as_table);
        let dependencies = tables.flat_map(|t| t.keys().cloned()).collect();
        Member { folder, name, manifest, dependencies }
    };
    folders.iter().map(member).collect()
}

fn manifest(folder: &Path) -> Table {
    let path = folder.join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every text file of the repository with one of these extensions, by its path from the root.
pub fn texts(extensions: &[&str]) -> Vec<(String, String)> {
    let texts = texts_in(&root(), extensions);
    assert!(!texts.is_empty(), "no file ends in any of {extensions:?}");
    texts
}

/// As [`texts`], of one folder; paths start at the folder.
pub fn texts_in(start: &Path, extensions: &[&str]) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    let mut folders = vec![start.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path()) {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let extension = entry.extension().unwrap_or(entry.file_name().unwrap_or_default());
            if entry.is_dir() && !["target", ".git", "report", "golden", "corpus"].contains(&name.as_str()) {
                folders.push(entry);
            } else if entry.is_file() && extensions.iter().any(|e| extension == *e) {
                let path = entry.strip_prefix(start).expect("inside").to_string_lossy().replace('\\', "/");
                texts.push((path, fs::read_to_string(&entry).expect("a text file")));
            }
        }
    }
    texts
}
