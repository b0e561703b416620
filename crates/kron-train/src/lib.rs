//! Library behind the program `kron-train`.
//!
//! ```text
//! Config ─┬─ model::Weights, data::Dataset ─ run::Learner ─ run::run ─ Outcome ─ report.html
//!         └─ run::AdapterRule ─ Inject ───────┘                 │
//!                                            studies: compare, sequential, chains
//! Weights, adapter, head ─ inference::TrainedModel ─ evaluate, predict, generate
//! ```
//!
//! Modules depend on each other in one direction: `config` ← `data` ← `model` ← `run` ← `studies`, `inference`; `run`
//! shares its steps over `ranks`, which know nothing of it.
#![deny(unsafe_code)]

pub mod compute;
pub mod config;
pub mod data;
mod error;
mod files;
pub mod inference;
pub mod model;
mod output;
mod program;
pub mod ranks;
mod report;
pub mod run;
mod sealed;
pub mod studies;

pub use config::Config;
pub use error::{Error, Result};
pub use program::program;
pub use run::{Learner, NamedGroup, Progress, Score};
