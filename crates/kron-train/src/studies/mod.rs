//! Studies made of many runs: comparisons of methods, chains of tasks, and the demo.

pub mod chains;
pub mod compare;
pub mod demo;
mod grid_file;
mod jobs;
pub mod sequential;
mod shared_study;
pub mod stats;
pub mod table;

pub use grid_file::{Entry, MAX_RUNS};
pub use jobs::Schedule;
