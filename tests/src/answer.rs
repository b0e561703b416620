//! [`Answer`]: the oracle's outputs.

use ndarray::Array2;

/// Outputs in float64, before the old contents are added.
#[derive(Clone, Debug)]
pub struct Answer {
    /// T = X̃·Cᵀ, (n·a_in) × r.
    pub t: Array2<f64>,
    /// Y, n × d_out.
    pub y: Array2<f64>,
    /// dX, n × d_in.
    pub dx: Array2<f64>,
    /// \[dA | dB | dC\].
    pub grad: Vec<f64>,
}
