//! Operations of a transformer block: each one op with a hand-written backward pass for float32 on the CPU.
//!
//! Each keeps its operands for the backward pass, and the output's loss the gradient of its operand. Work is spread over
//! rayon's threads, and loops run in the processor's vectors. Other devices and types take [`composed`], the same functions out of candle's own ops.

mod add;
mod attention;
mod attention_mask;
mod composed;
mod exp;
mod geglu;
mod gelu;
mod heads;
mod layer_norm;
mod output_loss;
mod rms_norm;
mod slices;
mod swiglu;
#[cfg(test)]
mod tests;
mod vectors;

pub(super) use add::add;
pub(super) use attention::{attention, attention_backward};
pub(super) use attention_mask::AttentionMask;
pub(super) use geglu::geglu;
pub(super) use gelu::gelu;
pub(super) use heads::Heads;
pub(super) use layer_norm::layer_norm;
pub(super) use output_loss::output_loss;
pub(super) use rms_norm::{head_norm, head_norm_backward, rms_norm, rms_norm_backward};
pub(super) use slices::is_fusable;
pub(super) use swiglu::{swiglu, swiglu_backward};
