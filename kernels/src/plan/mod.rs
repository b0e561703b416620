//! [`LaunchPlan`]: the kernels that a problem launches, with their grids and scratch.
//!
//! A plan is a pure function of the [`Problem`](crate::Problem). It queries no device, so equal
//! problems compute equal sums in the same order on every GPU.

mod columns;
mod cost;
mod launches;
mod planner;
mod scratch;

pub use launches::{LaunchPlan, Parts, Step};
pub use planner::BLOCKS;
pub use scratch::workspace_len;
