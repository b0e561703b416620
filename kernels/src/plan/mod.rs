//! [`LaunchPlan`]: the kernels that a problem launches, with their grids and scratch.
//!
//! A plan is a pure function of the [`Problem`](crate::Problem). It queries no device, so equal
//! problems compute equal sums in the same order on every GPU.

mod backward_simt;
mod columns;
mod cost;
mod forward;
mod grid;
mod group;
mod launches;
mod planner;
mod scratch;
mod segments;
mod tensor_core;

pub use group::{GroupPlan, MAX_JOINED, group_workspace_len};
pub use launches::{LaunchPlan, MULTIPROCESSORS, Parts, Step};
pub use planner::BLOCKS;
pub use scratch::workspace_len;
pub use segments::segments_workspace_len;
