//! [`Unit`]: what multiplies panels of bf16 numbers.

use super::amx::{Amx, Tiles};
use super::amx_panel::Panel;
use super::pairs::Pairs;
use crate::Operands;

/// Unit of the processor that multiplies panels.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    /// The matrix unit, for all parts of a number.
    Matrix(Amx),
    /// The vector units, for numbers of one part: with more, float32's own product is faster.
    Vector(Pairs),
}

impl Unit {
    /// Returns the fastest unit for such operands.
    pub fn new(operands: Operands) -> Option<Self> {
        Self::all(operands).into_iter().flatten().next()
    }

    /// Returns the processor's units for such operands, fastest first.
    pub fn all(operands: Operands) -> [Option<Self>; 2] {
        let vector = if operands == Operands::Bf16 { Pairs::new() } else { None };
        [Amx::new().map(Self::Matrix), vector.map(Self::Vector)]
    }

    /// Prepares the unit of this thread until the guard is dropped.
    ///
    /// # Safety
    /// The thread has no other guard.
    pub unsafe fn ready(self) -> Ready {
        match self {
            // SAFETY: as promised by the caller.
            Self::Matrix(amx) => Ready::Matrix(unsafe { amx.configured() }),
            Self::Vector(pairs) => Ready::Vector(pairs),
        }
    }
}

/// A thread's prepared unit.
pub(crate) enum Ready {
    Matrix(Tiles),
    Vector(Pairs),
}

impl Ready {
    /// Computes the square y = a·b of two packed panels, or y += a·b.
    ///
    /// # Safety
    /// `a` and `b` are `steps` packed steps of a panel, at least one, whose numbers the unit takes, `y` is a square of
    /// a panel's rows and columns, `stride` numbers from row to row, and nobody else uses them.
    pub unsafe fn multiply(&self, a: Panel, b: Panel, steps: usize, y: *mut f32, stride: usize, add: bool) {
        // SAFETY: as promised by the caller.
        unsafe {
            match self {
                Self::Matrix(tiles) => tiles.multiply(a, b, steps, y, stride, add),
                Self::Vector(pairs) => pairs.multiply(a, b, steps, y, stride, add),
            }
        }
    }
}
