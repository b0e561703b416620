//! Names of modules and tensors: components joined by dots.

use crate::text::shown;
use crate::{Error, Result};

/// Longest name of a module, tensor or target, in bytes.
pub const MAX_NAME: usize = 512;

/// Fails unless the name of a module or tensor is a dotted path; `kind` names what it is the name of.
pub fn check_path(kind: &str, name: &str) -> Result<()> {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    if name.len() <= MAX_NAME && name.split('.').all(part) {
        return Ok(());
    }
    Err(Error::data(format!(
        "{kind} {} is refused: a {kind}'s name is parts of ASCII letters, digits, _ and - joined by dots, \
         at most {MAX_NAME} bytes",
        shown(name)
    )))
}
