//! [`LaunchPlan`]: the kernels that a problem launches, with their grids and scratch.
//!
//! A plan is a pure function of the [`Problem`](crate::Problem). It queries no device, so equal
//! problems compute equal sums in the same order on every GPU.

mod columns;
mod cost;
mod grid;
mod launches;
mod planner;
mod scratch;
mod segments;
mod tensor_core;

pub use launches::{LaunchPlan, MULTIPROCESSORS, Parts, Step};
pub use planner::BLOCKS;
pub use scratch::workspace_len;
pub use segments::segments_workspace_len;
