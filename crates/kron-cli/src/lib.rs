//! The commands of the `kron` program, one module each, and what they share:
//! exit codes, [`Output`], and a watch over long work. Adapters are read and
//! written by [`kron_adapter`], whose [`Error`] is that of the commands too.
//!
//! A command is a pair: `Args`, which clap fills, and `run`, which prints once,
//! when all is done, and returns the exit code. Bad input leaves the standard
//! output empty.
#![deny(unsafe_code)]

mod apart;
pub mod convert;
pub mod diff;
pub mod docs;
mod error;
pub mod export;
pub mod inspect;
pub mod merge;
pub mod model;
mod named;
mod output;
pub mod plan;
pub mod quantise;
mod table;
pub mod unmerge;
pub mod verify;
mod watch;

pub use error::{EXIT_CODES, report};
pub use kron_adapter::{Error, Result};
pub use output::Output;

use kron_adapter::{Tensors, files};
