//! Checks that an output does not overwrite an adapter or a model that is read.

use std::path::Path;

use kron_adapter::peft::{self, CONFIG, WEIGHTS};
use kron_adapter::{diffusers_file, io};

use crate::Result;
use crate::model::{self, Base};

/// Fails if `out`, a folder or a file, is `source` or holds it, is a file in the folder `source`, or
/// holds a file that an adapter in that folder links to.
///
/// # Errors
/// A usage error with both names.
pub fn check_not_overwriting(source: &Path, out: &Path, out_is_folder: bool) -> Result<()> {
    let source = &*diffusers_file(source);
    let source = peft::folder(source).unwrap_or(source);
    io::check_not_overwriting(source, out)?;
    if source.is_dir() {
        [CONFIG, WEIGHTS].iter().try_for_each(|name| io::check_not_overwriting(&source.join(name), out))?;
    }
    if out_is_folder && !out.is_file() { Ok(()) } else { io::check_not_inside(source, out) }
}

/// Fails if `out` is or holds a file of the model that was opened at `path`: a shard, to which its folder
/// may link, or the configuration beside a file.
///
/// # Errors
/// A usage error with both names.
pub fn check_model_not_overwriting(path: &Path, base: &Base, out: &Path, out_is_folder: bool) -> Result<()> {
    if base.folder().is_none() {
        check_not_overwriting(&path.with_file_name(model::CONFIG), out, false)?;
    }
    base.shards.iter().try_for_each(|shard| check_not_overwriting(&shard.path, out, out_is_folder))
}

/// Fails if the file `out` is one that is read from the adapter `source`.
/// Another file inside the adapter's folder is allowed.
///
/// # Errors
/// A usage error with both names.
pub fn check_not_overwriting_files(source: &Path, out: &Path) -> Result<()> {
    let source = &*diffusers_file(source);
    match peft::folder(source) {
        None => io::check_not_overwriting(source, out),
        Some(folder) => {
            [CONFIG, WEIGHTS].iter().try_for_each(|name| io::check_not_overwriting(&folder.join(name), out))
        }
    }
}
