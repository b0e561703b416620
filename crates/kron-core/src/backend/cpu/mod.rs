//! The CPU backend: fixed partitions of the rows, blocks of a partition that
//! stay in L2, and per block the three kernels of [`crate::simd`].

mod backward;
mod check;
mod forward;
mod masked;
mod merge;
mod plan;

use ndarray::{ArrayView2, ArrayViewMut2};

use super::{Backend, Backward, Forward, Merge, Pass};
use crate::element::sealed::Sealed;
use crate::simd::Isa;
use crate::{Element, Error, KronOp, Result};

/// Forward, backward and merge on the host, over rayon's current thread pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    isa: Isa,
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// With the best instruction set of this machine.
    pub fn new() -> Self {
        Self { isa: Isa::detect() }
    }

    /// With a given instruction set.
    ///
    /// # Errors
    /// One that this machine lacks.
    pub fn with_isa(isa: Isa) -> Result<Self> {
        if !isa.is_available() {
            return Err(Error::Unsupported(format!(
                "this machine has no {isa}; its best instruction set is {}",
                Isa::detect()
            )));
        }
        Ok(Self { isa })
    }

    /// The instruction set in use.
    pub const fn isa(&self) -> Isa {
        self.isa
    }
}

impl Backend for Cpu {
    /// n × d with unit inner stride; rows may lie apart.
    type Rows<'a, E: Element> = ArrayView2<'a, E>;
    /// n × d with unit inner stride; rows may lie apart.
    type RowsMut<'a, E: Element> = ArrayViewMut2<'a, E>;
    type Floats<'a> = &'a [f32];
    type FloatsMut<'a> = &'a mut [f32];

    fn workspace_len(&self, op: &KronOp, pass: Pass, rows: usize) -> usize {
        match pass {
            Pass::Forward => forward::workspace_len(self.isa, op, rows),
            Pass::Backward { .. } => backward::workspace_len(self.isa, op, rows),
            Pass::Merge => merge::workspace_len(self.isa, op, rows),
        }
    }

    fn forward<E: Element>(&self, op: &KronOp, call: Forward<'_, Self, E>) -> Result<()> {
        check::forward(self, op, &call)?;
        <E as Sealed>::forward(self.isa, op, call)
    }

    fn backward<E: Element>(&self, op: &KronOp, call: Backward<'_, Self, E>) -> Result<()> {
        check::backward(self, op, &call)?;
        <E as Sealed>::backward(self.isa, op, call)
    }

    fn merge<E: Element>(&self, op: &KronOp, call: Merge<'_, Self, E>) -> Result<()> {
        check::merge(self, op, &call)?;
        <E as Sealed>::merge(self.isa, op, call)
    }
}

macro_rules! compile {
    ($($element:ty),*) => {$(
        impl Sealed for $element {
            fn forward(isa: Isa, op: &KronOp, call: Forward<'_, Cpu, Self>) -> Result<()> {
                forward::run(isa, op, call)
            }
            fn backward(isa: Isa, op: &KronOp, call: Backward<'_, Cpu, Self>) -> Result<()> {
                backward::run(isa, op, call)
            }
            fn merge(isa: Isa, op: &KronOp, call: Merge<'_, Cpu, Self>) -> Result<()> {
                merge::run(isa, op, call)
            }
        }
    )*};
}

compile!(f32, half::f16, half::bf16);
