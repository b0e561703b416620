//! `kron-bench`: Kron-LoRA against LoRA on the layers of real models, in time,
//! memory, parameters and numerical error. `docs/BENCHMARKS.md` defines every
//! column; the program is `src/main.rs`.
//!
//! ```text
//! cli → schedule → runner: check (oracle) → time → record → table, html, baseline
//!                    ↓
//!                 platform: host (engines), device
//! ```
#![deny(unsafe_code)]

mod autotune;
pub mod baseline;
mod check;
pub mod cli;
pub mod convert;
pub mod data;
#[cfg_attr(feature = "cuda", allow(unsafe_code))]
pub mod device;
pub mod engine;
pub mod engines;
mod format;
pub mod gemm;
pub mod host;
pub mod html;
mod machine;
pub mod memory;
pub mod models;
mod oracle;
mod platform;
mod plots;
pub mod problem;
pub mod record;
mod roof;
pub mod runner;
pub mod schedule;
pub mod stats;
pub mod table;
mod timing;
