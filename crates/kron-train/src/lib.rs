//! What the program `kron-train` is made of: pretrained models on candle's ops,
//! data, methods, runs that can be killed and go on, comparisons, chains of
//! tasks.
//!
//! ```text
//! Config ─┬─ Weights, Dataset ─ Learner ─ run ─ Outcome ─ report
//!         └─ Planned ─ Inject ──┘
//! ```
#![forbid(unsafe_code)]

pub mod chains;
pub mod compare;
pub mod compute;
pub mod config;
pub mod data;
pub mod demo;
mod error;
mod kept;
mod learner;
mod method;
pub mod model;
mod process;
mod progress;
pub mod report;
pub mod run;
pub mod sequential;
pub mod stats;
pub mod text;

pub use config::Config;
pub use error::{Error, Result};
pub use learner::{Learner, Named, Score};
pub use progress::Progress;
