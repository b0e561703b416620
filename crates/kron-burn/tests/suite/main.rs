//! kron-burn against burn's own autodiff, files, trees and refusals.

mod attach;
mod common;
mod dense;
mod examples;
mod files;
mod gradients;
mod refusals;
