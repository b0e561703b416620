//! What is compared, and under which names a file holds it.

use std::collections::BTreeMap;

use serde::Serialize;

/// One compared output. The order is the table's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "&'static str")]
pub enum Quantity {
    /// The layer's output, base and adapter.
    Y,
    /// The layer's input gradient.
    Dx,
    /// The adapter's share of y.
    Delta,
    /// The adapter's share of dx.
    DxDelta,
    /// Gradient of A.
    A,
    /// Gradient of the left factor of A = w1_a·w1_b.
    W1a,
    /// Gradient of the right one.
    W1b,
    /// Gradient of B.
    B,
    /// Gradient of C.
    C,
    /// Gradient of the full inner factor M.
    M,
    /// Rows of the merged weight.
    Merged,
}

/// Results by name, each row-major in float64.
pub type Outputs = BTreeMap<Quantity, Vec<f64>>;

impl Quantity {
    /// All of them, in the table's order.
    pub const ALL: [Quantity; 11] = {
        use Quantity::*;
        [Y, Dx, Delta, DxDelta, A, W1a, W1b, B, C, M, Merged]
    };

    /// Its name in the table: the one alphabet's.
    pub const fn name(self) -> &'static str {
        self.names().0
    }

    /// Its name in a file, after `ref.`.
    pub const fn in_reference(self) -> &'static str {
        self.names().1
    }

    /// Its name in a file, after a framework's prefix.
    pub const fn in_framework(self) -> &'static str {
        self.names().2
    }

    /// Whether it is a gradient of a factor, which passes through more roundings than an output.
    pub const fn is_gradient(self) -> bool {
        use Quantity::*;
        matches!(self, A | W1a | W1b | B | C | M)
    }

    const fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Quantity::Y => ("y", "y", "y"),
            Quantity::Dx => ("dx", "dx", "dx"),
            Quantity::Delta => ("delta", "delta", "delta"),
            Quantity::DxDelta => ("dx_delta", "dx_delta", "dx_delta"),
            Quantity::A => ("dA", "grad.A", "grad.lokr_w1"),
            Quantity::W1a => ("dw1_a", "grad.lokr_w1_a", "grad.lokr_w1_a"),
            Quantity::W1b => ("dw1_b", "grad.lokr_w1_b", "grad.lokr_w1_b"),
            Quantity::B => ("dB", "grad.B", "grad.lokr_w2_a"),
            Quantity::C => ("dC", "grad.C", "grad.lokr_w2_b"),
            Quantity::M => ("dM", "grad.w2", "grad.lokr_w2"),
            Quantity::Merged => ("merged", "merged_sample", "merged_sample"),
        }
    }
}

impl From<Quantity> for &'static str {
    fn from(quantity: Quantity) -> Self {
        quantity.name()
    }
}
