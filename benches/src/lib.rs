//! `kron-bench`: Kron-LoRA against LoRA on the layers of real models, in time,
//! memory, parameters and numerical error. `docs/BENCHMARKS.md` defines every
//! column; the program is `src/main.rs`.
//!
//! ```text
//! cli → plan → runner → cell: check (oracle) → time (engines) → record → table, html, baseline
//! ```
#![deny(unsafe_code)]

pub mod baseline;
mod cell;
mod check;
pub mod cli;
mod contest;
mod convert;
pub mod data;
#[cfg_attr(feature = "cuda", allow(unsafe_code))]
pub mod device;
pub mod engines;
mod format;
mod gemm;
pub mod html;
mod machine;
pub mod memory;
mod models;
mod oracle;
pub mod plan;
mod plots;
pub mod problem;
pub mod record;
mod roof;
pub mod runner;
pub mod stats;
pub mod table;
mod timing;
