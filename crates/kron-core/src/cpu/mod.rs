//! The CPU backend. A call's rows are divided into partitions and those into blocks
//! that stay in L2; each block runs the three kernels of [`crate::simd`].

mod backward;
mod check;
mod device;
mod forward;
mod layout;
mod masked;
mod merge;
mod mix;
mod packed;
mod partition;
mod team;
#[cfg(test)]
mod tests;

use ndarray::{ArrayView2, ArrayViewMut2};

pub use device::Cpu;
pub use team::Team;

use partition::{Partitioned, RowPartition};

use crate::element::sealed::PerElement;
use crate::{Backend, Backward, Element, Forward, KronOp, Merge, Pass, Result};

impl Backend for Cpu {
    /// n × d with unit inner stride; the row stride is free.
    type Rows<'a, E: Element> = ArrayView2<'a, E>;
    /// n × d with unit inner stride; the row stride is free.
    type RowsMut<'a, E: Element> = ArrayViewMut2<'a, E>;
    type Floats<'a> = &'a [f32];
    type FloatsMut<'a> = &'a mut [f32];

    fn workspace_len(&self, op: &KronOp, pass: Pass, rows: usize) -> usize {
        let partitioned = match pass {
            Pass::Forward | Pass::Merge => Partitioned::Forward,
            Pass::Backward { .. } => Partitioned::Backward,
        };
        let len = |partition| match pass {
            Pass::Forward => forward::layout(self.isa, op, partition).workspace_len(),
            Pass::Backward { dx } => backward::layout(self.isa, op, partition, dx).call.workspace_len(),
            Pass::Merge => merge::layout(self.isa, op, partition).workspace_len(),
        };
        RowPartition::bounds(partitioned, &op.shape, rows).map(len).max().unwrap_or(0)
    }

    fn forward<E: Element>(&self, op: &KronOp, call: Forward<'_, Self, E>) -> Result<()> {
        E::run::<ForwardPass>((*self, *op, call))
    }

    fn backward<E: Element>(&self, op: &KronOp, call: Backward<'_, Self, E>) -> Result<()> {
        E::run::<BackwardPass>((*self, *op, call))
    }

    fn merge<E: Element>(&self, op: &KronOp, call: Merge<'_, Self, E>) -> Result<()> {
        E::run::<MergePass>((*self, *op, call))
    }
}

/// Compiles a pass for each element type.
macro_rules! passes {
    ($($pass:ident: $call:ident => $run:path),*) => {$(
        struct $pass<'a>(std::marker::PhantomData<&'a ()>);

        impl<'a> PerElement for $pass<'a> {
            type Arguments<E: Element> = (Cpu, KronOp, $call<'a, Cpu, E>);
            fn f32((cpu, op, call): Self::Arguments<f32>) -> Result<()> {
                $run(cpu, &op, call)
            }
            fn f16((cpu, op, call): Self::Arguments<half::f16>) -> Result<()> {
                $run(cpu, &op, call)
            }
            fn bf16((cpu, op, call): Self::Arguments<half::bf16>) -> Result<()> {
                $run(cpu, &op, call)
            }
        }
    )*};
}

passes!(
    ForwardPass: Forward => forward::run,
    BackwardPass: Backward => backward::run,
    MergePass: Merge => merge::run
);
