//! The commands of the `kron` program, one module each.
//!
//! They share the exit codes ([`HELP`]), the printing of a result ([`TextOrJson`]) and a progress
//! bar over long work. Adapters are read and written by [`kron_adapter`], whose [`Error`] the commands
//! return too.
//!
//! A command is a pair: `Args`, which clap fills, and `run`. `run` prints once, when everything is done,
//! and returns the exit code. Invalid input leaves the standard output empty.
#![deny(unsafe_code)]

mod batches;
mod choice;
pub mod combine;
pub mod convert;
mod count;
pub mod diff;
pub mod docs;
mod dtype;
mod error;
pub mod inspect;
pub mod merge;
pub mod model;
mod overwriting;
pub mod plan;
mod print;
mod program;
mod progress;
pub mod quantise;
mod table;
pub mod verify;
mod weighted;

pub use error::{HELP, report};
pub use kron_adapter::{Error, Result};
pub use print::TextOrJson;
pub use program::program;
