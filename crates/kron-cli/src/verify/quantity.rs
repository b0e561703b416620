//! The compared outputs, and their names in a file.

use std::collections::BTreeMap;

use serde::Serialize;

/// One compared output, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "&'static str")]
pub enum Quantity {
    /// Output of the layer, base and adapter.
    Y,
    /// Input gradient of the layer.
    Dx,
    /// Adapter's share of y.
    Delta,
    /// Adapter's share of dx.
    DxDelta,
    /// Gradient of A.
    A,
    /// Gradient of the left factor of A = w1_a·w1_b.
    W1a,
    /// Gradient of the right factor of A.
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

/// Results by quantity, each row-major in float64.
pub type Outputs = BTreeMap<Quantity, Vec<f64>>;

impl Quantity {
    /// All quantities, in the order of the table.
    pub const ALL: [Quantity; 11] = {
        use Quantity::*;
        [Y, Dx, Delta, DxDelta, A, W1a, W1b, B, C, M, Merged]
    };

    /// Returns the name in the table.
    pub const fn name(self) -> &'static str {
        self.names().0
    }

    /// Returns the name in a file, after `ref.`.
    pub const fn in_reference(self) -> &'static str {
        self.names().1
    }

    /// Returns the name in a file, after a framework's prefix.
    pub const fn in_framework(self) -> &'static str {
        self.names().2
    }

    /// Returns true for a gradient of a factor, which passes through more roundings than an output.
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
