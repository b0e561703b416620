//! [`Theta`]: the flat float32 parameter buffer \[A | B | C\].

use crate::dropout::philox;
use crate::{Error, Inner, KronShape, Outer, Result};

static ONE: [f32; 1] = [1.0];

/// Memory of a θ, on the host or on a device.
pub trait ThetaBuffer {
    /// Returns the number of elements.
    fn elements(&self) -> usize;
}

impl ThetaBuffer for &[f32] {
    fn elements(&self) -> usize {
        self.len()
    }
}

/// A, B and C of a θ-shaped slice. [`split`] and [`split_mut`] are the only code that knows the order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    /// a_out × a_in; \[1\] for LoRA.
    pub a: &'a [f32],
    /// b_out × r; empty when the inner factor is full.
    pub b: &'a [f32],
    /// r × c_in, or M, b_out × c_in.
    pub c: &'a [f32],
}

/// A, B and C of a mutable θ-shaped slice; `a` is empty for LoRA.
#[derive(Debug)]
pub(crate) struct PartsMut<'a> {
    pub a: &'a mut [f32],
    pub b: &'a mut [f32],
    pub c: &'a mut [f32],
}

/// Splits a θ of exactly `shape.params()` elements.
pub(crate) fn split<'a>(shape: &KronShape, theta: &'a [f32]) -> Parts<'a> {
    let (a, rest) = theta.split_at(shape.a_len());
    let (b, c) = rest.split_at(shape.b_len());
    let a = if shape.outer() == Outer::One { &ONE } else { a };
    Parts { a, b, c }
}

/// Splits a gradient of exactly `shape.params()` elements.
pub(crate) fn split_mut<'a>(shape: &KronShape, theta: &'a mut [f32]) -> PartsMut<'a> {
    let (a, rest) = theta.split_at_mut(shape.a_len());
    let (b, c) = rest.split_at_mut(shape.b_len());
    PartsMut { a, b, c }
}

/// One adapter's parameters, \[A | B | C\] row-major: the same order on disk,
/// on the host, on the device and in the optimizer.
///
/// ```
/// use kron_core::{KronShape, LayerDims, Split, Theta};
///
/// let layer = LayerDims { d_out: 48, d_in: 70 };
/// let shape = KronShape::kron(layer, Split { a_out: 3, a_in: 7 }, 4)?;
/// let mut theta = Theta::init(shape, 1); // B = 0, so ΔW = 0
/// assert_eq!(theta.a().len(), 3 * 7);
/// assert!(theta.b().iter().all(|&b| b == 0.0));
///
/// // An optimizer updates the whole buffer.
/// theta.as_mut_slice().iter_mut().for_each(|v| *v -= 0.01);
///
/// let joined = Theta::from_factors(shape, theta.a(), theta.b(), theta.c())?;
/// assert_eq!(joined, theta);
/// assert_eq!(Theta::from_vec(shape, theta.into_vec())?, joined);
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Theta {
    shape: KronShape,
    data: Vec<f32>,
}

impl Theta {
    /// Returns a θ of zeros.
    pub fn zeros(shape: KronShape) -> Self {
        Self { shape, data: vec![0.0; shape.params()] }
    }

    /// Returns the paper's start: A and C Kaiming-uniform, B zero, so that ΔW = 0.
    ///
    /// Kaiming-uniform with a = √5, as in LoRA's and LoKr's code, is U(−k, k) with
    /// k = 1/√fan_in; fan_in is a_in for A and c_in for C. A full inner factor M
    /// starts at zero. Equal seeds give equal bits.
    pub fn init(shape: KronShape, seed: u64) -> Self {
        let mut theta = Self::zeros(shape);
        let parts = split_mut(&shape, &mut theta.data);
        uniform(parts.a, 1.0 / (shape.a_in() as f32).sqrt(), seed, 0);
        if let Inner::LowRank(_) = shape.inner() {
            uniform(parts.c, 1.0 / (shape.c_in() as f32).sqrt(), seed, 1);
        }
        theta
    }

    /// Returns every factor, B included, uniform in (−k, k) with k = 1/√fan_in. ΔW is
    /// not 0: for tests and benchmarks.
    pub fn random(shape: KronShape, seed: u64) -> Self {
        let mut theta = Self::init(shape, seed);
        let parts = split_mut(&shape, &mut theta.data);
        let full = 1.0 / (shape.c_in() as f32).sqrt();
        match shape.inner() {
            Inner::LowRank(r) => uniform(parts.b, 1.0 / (r as f32).sqrt(), seed, 2),
            Inner::Full => uniform(parts.c, full, seed, 2),
        }
        theta
    }

    /// Takes over a buffer of `shape.params()` elements.
    ///
    /// # Errors
    /// Fails on any other length.
    pub fn from_vec(shape: KronShape, data: Vec<f32>) -> Result<Self> {
        check_len("theta", &shape, data.len())?;
        Ok(Self { shape, data })
    }

    /// Joins the factors, each row-major. `a` is empty for LoRA, `b` for a full inner factor.
    ///
    /// ```
    /// use kron_core::{KronShape, LayerDims, Split, Theta};
    ///
    /// // A is 2 × 1, B 1 × 1 and C 1 × 3.
    /// let shape = KronShape::kron(LayerDims { d_out: 2, d_in: 3 }, Split { a_out: 2, a_in: 1 }, 1)?;
    /// let theta = Theta::from_factors(shape, &[1.0, 2.0], &[3.0], &[4.0, 5.0, 6.0])?;
    /// assert_eq!(theta.as_slice(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    /// assert!(Theta::from_factors(shape, &[1.0], &[3.0], &[4.0, 5.0, 6.0]).is_err());
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails if the length of a factor does not match `shape`.
    pub fn from_factors(shape: KronShape, a: &[f32], b: &[f32], c: &[f32]) -> Result<Self> {
        let want =
            [("a", a.len(), shape.a_len()), ("b", b.len(), shape.b_len()), ("c", c.len(), shape.c_len())];
        for (what, got, len) in want {
            if got != len {
                return Err(Error::Buffer {
                    what,
                    got: format!("{got} elements"),
                    rule: format!("{shape} needs {len}"),
                });
            }
        }
        Ok(Self { shape, data: [a, b, c].concat() })
    }

    /// Shape of the adapter.
    pub const fn shape(&self) -> &KronShape {
        &self.shape
    }
    /// A, a_out × a_in; \[1\] for LoRA.
    pub fn a(&self) -> &[f32] {
        split(&self.shape, &self.data).a
    }
    /// B, b_out × r; empty when the inner factor is full.
    pub fn b(&self) -> &[f32] {
        split(&self.shape, &self.data).b
    }
    /// C, r × c_in; M, b_out × c_in, when the inner factor is full.
    pub fn c(&self) -> &[f32] {
        split(&self.shape, &self.data).c
    }
    /// Returns the whole buffer.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }
    /// Returns the whole buffer, for an optimizer.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.data
    }
    /// Returns the buffer itself.
    pub fn into_vec(self) -> Vec<f32> {
        self.data
    }
}

/// Fails unless `len` is the length of a θ-shaped buffer.
pub(crate) fn check_len(what: &'static str, shape: &KronShape, len: usize) -> Result<()> {
    if len == shape.params() {
        return Ok(());
    }
    Err(Error::Buffer {
        what,
        got: format!("{len} elements"),
        rule: format!(
            "[A | B | C] of {shape} is {} + {} + {} = {}",
            shape.a_len(),
            shape.b_len(),
            shape.c_len(),
            shape.params()
        ),
    })
}

/// Fills `out` with values uniform in (−k, k) from counter-based bits; `stream` separates the factors.
fn uniform(out: &mut [f32], k: f32, seed: u64, stream: u32) {
    let key = [seed as u32, (seed >> 32) as u32];
    for (block, chunk) in out.chunks_mut(4).enumerate() {
        let bits = philox([block as u32, (block as u64 >> 32) as u32, stream, 0x7468_6574], key);
        for (v, word) in chunk.iter_mut().zip(bits) {
            // The middle of one of 2²³ equal cells: symmetric and never ±1.
            let unit = ((word >> 9) as f32 + 0.5) / (1u32 << 22) as f32 - 1.0;
            *v = k * unit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LayerDims, Split};

    #[test]
    fn init_is_the_papers() {
        let shape =
            KronShape::kron(LayerDims { d_out: 48, d_in: 70 }, Split { a_out: 3, a_in: 7 }, 4).unwrap();
        let theta = Theta::init(shape, 7);
        assert!(theta.b().iter().all(|&v| v == 0.0));
        for (factor, fan_in) in [(theta.a(), 7.0f32), (theta.c(), 10.0)] {
            let k = 1.0 / fan_in.sqrt();
            assert!(factor.iter().all(|v| v.abs() < k && *v != 0.0));
            assert!(factor.iter().any(|v| v.abs() > 0.5 * k));
        }
        assert_eq!(theta, Theta::init(shape, 7));
        assert_ne!(theta, Theta::init(shape, 8));
    }

    #[test]
    fn wrong_lengths_are_refused_with_the_numbers() {
        let shape =
            KronShape::kron(LayerDims { d_out: 48, d_in: 70 }, Split { a_out: 3, a_in: 7 }, 4).unwrap();
        let message = Theta::from_vec(shape, vec![0.0; 5]).unwrap_err().to_string();
        assert!(message.contains("5 elements") && message.contains("21 + 64 + 40 = 125"), "{message}");
        assert_eq!(Theta::zeros(KronShape::lora(LayerDims { d_out: 5, d_in: 3 }, 2).unwrap()).a(), [1.0]);
    }
}
