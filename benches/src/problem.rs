//! The problem that an engine solves, and the least work that it takes.

use kron_core::{Dtype, KronOp, KronShape, LayerDims};
use serde::{Deserialize, Serialize};

/// The passes that are timed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TimedPasses {
    /// Forward alone.
    #[serde(rename = "forward")]
    Forward,
    /// Forward, then backward.
    #[serde(rename = "forward+backward")]
    Both,
}

impl TimedPasses {
    /// Both passes.
    pub const ALL: [TimedPasses; 2] = [TimedPasses::Forward, TimedPasses::Both];

    /// Returns the name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            TimedPasses::Forward => "forward",
            TimedPasses::Both => "forward+backward",
        }
    }
}

/// The computation of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LayerTask {
    /// Y = X·Wᵀ and dX += dY·W.
    Linear(LayerDims),
    /// Y += adapter(X), its dX and θ's gradient.
    Adapter(KronOp),
    /// W += ΔW, and θ's gradient.
    Merge(KronOp),
    /// Y = X·Wᵀ + adapter(X), its dX and θ's gradient; Y and dX are overwritten.
    Layer(KronOp),
}

/// The work of the ideal algorithm: every operand read once, every result written once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Bytes read and written.
    pub bytes: f64,
    /// Float operations; a multiply-add is two.
    pub flops: f64,
}

impl LayerTask {
    /// Returns the adapter; `None` for the base layer.
    pub const fn op(&self) -> Option<KronOp> {
        match *self {
            LayerTask::Linear(_) => None,
            LayerTask::Adapter(op) | LayerTask::Merge(op) | LayerTask::Layer(op) => Some(op),
        }
    }

    /// Returns the adapter's shape; `None` for the base layer.
    pub fn shape(&self) -> Option<KronShape> {
        self.op().map(|op| op.shape)
    }

    /// Returns the number of trained parameters.
    pub fn params(&self) -> usize {
        self.shape().map_or(0, |s| s.params())
    }

    /// Returns the sizes of the layer.
    pub fn layer(&self) -> LayerDims {
        match *self {
            LayerTask::Linear(layer) => layer,
            LayerTask::Adapter(op) | LayerTask::Merge(op) | LayerTask::Layer(op) => {
                LayerDims { d_out: op.shape.d_out(), d_in: op.shape.d_in() }
            }
        }
    }

    /// Returns the ideal algorithm's work for `rows` rows.
    ///
    /// An adapter reads X, reads and writes Y, reads θ and writes T; backward
    /// reads X, dY, T and θ, reads and writes dX and the gradient. The cost depends
    /// on the problem alone: all engines of one problem have the same.
    pub fn cost(&self, pass: TimedPasses, rows: usize, dtype: Dtype) -> Cost {
        let LayerDims { d_out, d_in } = self.layer();
        let (n, element) = (rows as f64, dtype.size() as f64);
        let (x, y) = (n * d_in as f64 * element, n * d_out as f64 * element);
        let weight = d_out as f64 * d_in as f64;
        let theta = 4.0 * self.params() as f64;
        let (forward, backward) = match self {
            LayerTask::Linear(_) => (
                Cost { bytes: x + y + weight * element, flops: 2.0 * n * weight },
                Cost { bytes: y + 2.0 * x + weight * element, flops: 2.0 * n * weight },
            ),
            LayerTask::Adapter(op) => {
                let t = 4.0 * op.t_len(rows) as f64;
                let f = flops(&op.shape, n);
                (
                    Cost { bytes: x + 2.0 * y + theta + t, flops: f.t + f.u + f.y },
                    // dU and dB, dT and dA and U again, dC and dX.
                    Cost {
                        bytes: x + y + 2.0 * x + t + 3.0 * theta,
                        flops: 2.0 * f.y + 3.0 * f.u + 2.0 * f.t,
                    },
                )
            }
            LayerTask::Merge(op) => {
                let f = flops(&op.shape, n);
                (
                    Cost { bytes: 2.0 * weight * element + theta, flops: 2.0 * weight },
                    // T, dU and dB, dT and dA and U, dC; dX is the base product's.
                    Cost { bytes: x + y + 3.0 * theta, flops: 2.0 * f.y + 3.0 * f.u + 2.0 * f.t },
                )
            }
            LayerTask::Layer(op) => {
                let (t, f) = (4.0 * op.t_len(rows) as f64, flops(&op.shape, n));
                let product = 2.0 * n * weight;
                (
                    Cost { bytes: x + y + weight * element + theta + t, flops: product + f.t + f.u + f.y },
                    Cost {
                        bytes: y + 2.0 * x + weight * element + t + 3.0 * theta,
                        flops: product + 2.0 * f.y + 3.0 * f.u + 2.0 * f.t,
                    },
                )
            }
        };
        match pass {
            TimedPasses::Forward => forward,
            TimedPasses::Both => {
                Cost { bytes: forward.bytes + backward.bytes, flops: forward.flops + backward.flops }
            }
        }
    }
}

/// Float operations of T = X·Cᵀ, of U = A·T and of U·Bᵀ.
struct Flops {
    t: f64,
    u: f64,
    y: f64,
}

fn flops(s: &KronShape, n: f64) -> Flops {
    let r = s.width() as f64;
    Flops {
        t: 2.0 * n * s.d_in() as f64 * r,
        // LoRA's A is [1], which is not multiplied by.
        u: if s.a_len() == 0 { 0.0 } else { 2.0 * n * (s.a_out() * s.a_in()) as f64 * r },
        y: 2.0 * n * s.d_out() as f64 * r,
    }
}

#[cfg(test)]
mod tests {
    use kron_core::{LayerDims, Split};

    use super::*;
    use kron_core::Scale;

    #[test]
    fn costs_are_the_formulas_of_the_method() {
        let op = |shape| LayerTask::Adapter(KronOp::new(shape, Scale::new(4.0).unwrap()));
        let kron =
            op(KronShape::kron(LayerDims { d_out: 4096, d_in: 4096 }, Split { a_out: 16, a_in: 2 }, 8)
                .unwrap());
        let lora = op(KronShape::lora(LayerDims { d_out: 4096, d_in: 4096 }, 8).unwrap());
        // Multiply-adds per token, q_proj of Mistral-7B, r = 8: 65,792 against 65,536.
        assert_eq!(kron.cost(TimedPasses::Forward, 1, Dtype::F32).flops, 2.0 * 65_792.0);
        assert_eq!(lora.cost(TimedPasses::Forward, 1, Dtype::F32).flops, 2.0 * 65_536.0);
        // Three rows of 4096 elements, θ of 18,464 elements, T of 2 × 8.
        let bytes = 2.0 * 3.0 * 4096.0 + 4.0 * (18_464.0 + 16.0);
        assert_eq!(kron.cost(TimedPasses::Forward, 1, Dtype::Bf16).bytes, bytes);
        let both = kron.cost(TimedPasses::Both, 1, Dtype::Bf16).bytes;
        assert_eq!(both, bytes + 2.0 * 4.0 * 4096.0 + 4.0 * (3.0 * 18_464.0 + 16.0));
    }
}
