//! The commands of the `kron` program, one module each, and what they share:
//! [`Error`] with its exit codes, [`Output`], and the reading of files.
//!
//! A command is a pair: `Args`, which clap fills, and `run`, which prints once,
//! when all is done, and returns the exit code. Bad input leaves the standard
//! output empty.
#![forbid(unsafe_code)]

pub mod convert;
pub mod diff;
pub mod docs;
mod error;
pub mod export;
mod files;
pub mod formats;
pub mod inspect;
pub mod merge;
pub mod model;
mod output;
pub mod plan;
pub mod quantise;
mod table;
mod tensors;
pub mod unmerge;
pub mod verify;
mod watch;

pub use error::{EXIT_CODES, Error, Result};
pub use output::Output;
pub use tensors::Tensors;
