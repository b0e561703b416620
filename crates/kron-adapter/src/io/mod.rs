//! Files: read without trusting their size, written whole or not at all.
//!
//! ```text
//! Input ── Layout: the one parser of safetensors headers ── tensors
//! write_atomic ── OutputLock ── temporary file ── flushed ── renamed
//! ```
//!
//! Every length is checked against the size of the file before anything is allocated for it.
//!
//! ```
//! use kron_adapter::IfExists;
//! use kron_adapter::io::{read, write_atomic};
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("notes.txt");
//! write_atomic(&path, IfExists::Refuse, |out| out.write_all(b"rank 8"))?;
//! assert_eq!(read(&path, 1 << 20)?, b"rank 8");
//! assert!(read(&path, 3).is_err()); // 6 bytes, but the limit is 3
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod atomic;
mod direct;
mod identity;
mod input;
mod layout;
mod lock;
mod names;
mod options;
mod stream;

pub use atomic::{remove_leftovers, write_atomic, write_whole};
pub(crate) use atomic::{sync_folder, temporary_folder};
pub use identity::{check_not_inside, check_not_overwriting};
pub(crate) use input::MAX_HEADER;
pub use input::{Input, read};
pub use layout::{Layout, METADATA};
pub use lock::OutputLock;
pub use names::is_temporary;
pub(crate) use names::{FOLDER_LOCK, folder_of};
pub use options::{Flush, IfExists};
