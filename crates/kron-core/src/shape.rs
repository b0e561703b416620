//! [`KronShape`]: sizes of the factors. Only its constructor checks divisibility and overflow.

use crate::{Error, Result};

/// The outer factor A.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outer {
    /// A is a_out × a_in, stored in θ and trained.
    Trained,
    /// A = \[1\], frozen and not stored: LoRA.
    One,
}

/// The inner factor, b_out × c_in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inner {
    /// B·C with this rank: Kron-LoRA, LoRA, LoKr.
    LowRank(usize),
    /// One full matrix M: KronA, and LoKr with a full `lokr_w2`.
    Full,
}

/// Sizes of a linear layer, whose weight is d_out × d_in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerDims {
    /// Output features.
    pub d_out: usize,
    /// Input features.
    pub d_in: usize,
}

/// Sizes of the outer factor A, a_out × a_in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Split {
    /// Rows of A; divides d_out.
    pub a_out: usize,
    /// Columns of A; divides d_in.
    pub a_in: usize,
}

impl std::fmt::Display for Split {
    /// Writes `16×2`: a_out × a_in.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}", self.a_out, self.a_in)
    }
}

/// Shape of ΔW = s·A ⊗ (B·C), or s·A ⊗ M, on a layer of d_out × d_in.
///
/// [`KronShape::new`] and its shorthands are the only constructors. Every shape has
/// non-zero dimensions, d_out = a_out·b_out, d_in = a_in·c_in, and products that fit
/// in a `usize`; later code need not check.
///
/// ```
/// use kron_core::{KronShape, LayerDims, Split};
///
/// let layer = LayerDims { d_out: 4096, d_in: 4096 };
/// let split = Split { a_out: 16, a_in: 2 };
/// let kron = KronShape::kron(layer, split, 8)?;
/// assert_eq!((kron.b_out(), kron.c_in()), (256, 2048));
/// assert_eq!(kron.params(), 16 * 2 + 8 * (256 + 2048));
/// assert_eq!(kron.to_string(), "4096×4096 kron (A 16×2) r 8");
///
/// assert_eq!(KronShape::lora(layer, 8)?.params(), 8 * (4096 + 4096));
/// assert_eq!(KronShape::krona(layer, split)?.params(), 16 * 2 + 256 * 2048);
///
/// let error = KronShape::kron(layer, Split { a_out: 3, a_in: 2 }, 8).unwrap_err();
/// assert_eq!(error.to_string(), "a_out = 3 does not divide d_out = 4096");
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KronShape {
    a_out: usize,
    a_in: usize,
    b_out: usize,
    c_in: usize,
    outer: Outer,
    inner: Inner,
}

impl KronShape {
    /// Largest number of elements of a factor, and of one token's T or U. Lengths of a call's buffers are
    /// small multiples of these, and do not overflow.
    pub const MAX_ELEMENTS: usize = if usize::BITS >= 64 { 1 << 44 } else { isize::MAX as usize / 16 };

    /// Returns the shape that splits a layer by an outer factor of a_out × a_in.
    ///
    /// ```
    /// use kron_core::{Inner, KronShape, LayerDims, Outer, Split};
    ///
    /// let (layer, split) = (LayerDims { d_out: 48, d_in: 70 }, Split { a_out: 3, a_in: 7 });
    /// let shape = KronShape::new(layer, split, Outer::Trained, Inner::LowRank(4))?;
    /// assert_eq!(shape, KronShape::kron(layer, split, 4)?);
    /// # Ok::<(), kron_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// Fails if a dimension or the rank is 0, a_out does not divide d_out, a_in does not
    /// divide d_in, [`Outer::One`] has an outer factor other than 1 × 1, a factor or one token's
    /// T or U has more than [`KronShape::MAX_ELEMENTS`], or the layer more than `isize::MAX / 16`.
    pub fn new(layer: LayerDims, split: Split, outer: Outer, inner: Inner) -> Result<Self> {
        let (LayerDims { d_out, d_in }, Split { a_out, a_in }) = (layer, split);
        for (name, v) in [("d_out", d_out), ("d_in", d_in), ("a_out", a_out), ("a_in", a_in)] {
            if v == 0 {
                return Err(Error::Shape(format!("{name} is 0, but every dimension is at least 1")));
            }
        }
        if inner == Inner::LowRank(0) {
            return Err(Error::Shape("rank is 0, but a rank is at least 1".into()));
        }
        for (a_name, a, d_name, d) in [("a_out", a_out, "d_out", d_out), ("a_in", a_in, "d_in", d_in)] {
            if d % a != 0 {
                return Err(Error::Shape(format!("{a_name} = {a} does not divide {d_name} = {d}")));
            }
        }
        if outer == Outer::One && (a_out, a_in) != (1, 1) {
            return Err(Error::Shape(format!(
                "LoRA's outer factor is the number 1, but a_out × a_in is {a_out} × {a_in}"
            )));
        }
        let shape = Self { a_out, a_in, b_out: d_out / a_out, c_in: d_in / a_in, outer, inner };
        shape.check_overflow()?;
        Ok(shape)
    }

    /// Returns Kron-LoRA of rank `rank` with an outer factor of a_out × a_in.
    ///
    /// # Errors
    /// Fails as [`KronShape::new`] does.
    pub fn kron(layer: LayerDims, split: Split, rank: usize) -> Result<Self> {
        Self::new(layer, split, Outer::Trained, Inner::LowRank(rank))
    }

    /// Returns LoRA of rank `rank`: A = \[1\], frozen.
    ///
    /// # Errors
    /// Fails as [`KronShape::new`] does.
    pub fn lora(layer: LayerDims, rank: usize) -> Result<Self> {
        Self::new(layer, Split { a_out: 1, a_in: 1 }, Outer::One, Inner::LowRank(rank))
    }

    /// Returns KronA, with a full inner factor (arXiv 2212.10650).
    ///
    /// # Errors
    /// Fails as [`KronShape::new`] does.
    pub fn krona(layer: LayerDims, split: Split) -> Result<Self> {
        Self::new(layer, split, Outer::Trained, Inner::Full)
    }

    fn check_overflow(&self) -> Result<()> {
        let limit = Self::MAX_ELEMENTS as u128;
        let (a_out, a_in) = (self.a_out as u128, self.a_in as u128);
        let (b_out, c_in) = (self.b_out as u128, self.c_in as u128);
        let width = self.width() as u128;
        let sizes = [
            ("d_out × d_in", (a_out * b_out).checked_mul(a_in * c_in), isize::MAX as u128 / 16),
            ("a_out × a_in", a_out.checked_mul(a_in), limit),
            ("rank × (b_out + c_in)", width.checked_mul(b_out + c_in), limit),
            ("a_out × rank", a_out.checked_mul(width), limit),
            ("a_in × rank", a_in.checked_mul(width), limit),
        ];
        for (name, size, limit) in sizes {
            if size.is_none_or(|s| s > limit) {
                return Err(Error::Shape(format!(
                    "{name} is above the limit of {limit} elements: a_out = {a_out}, a_in = {a_in}, \
                     b_out = {b_out}, c_in = {c_in}, rank = {width}"
                )));
            }
        }
        Ok(())
    }

    /// Rows of A.
    pub const fn a_out(&self) -> usize {
        self.a_out
    }
    /// Columns of A.
    pub const fn a_in(&self) -> usize {
        self.a_in
    }
    /// Rows of B (or M).
    pub const fn b_out(&self) -> usize {
        self.b_out
    }
    /// Columns of C (or M).
    pub const fn c_in(&self) -> usize {
        self.c_in
    }
    /// Output width of the layer, a_out·b_out.
    pub const fn d_out(&self) -> usize {
        self.a_out * self.b_out
    }
    /// Input width of the layer, a_in·c_in.
    pub const fn d_in(&self) -> usize {
        self.a_in * self.c_in
    }
    /// Kind of the outer factor.
    pub const fn outer(&self) -> Outer {
        self.outer
    }
    /// Kind of the inner factor.
    pub const fn inner(&self) -> Inner {
        self.inner
    }
    /// Rank of B·C as requested, or `None` for a full inner factor.
    pub const fn rank(&self) -> Option<usize> {
        match self.inner {
            Inner::LowRank(r) => Some(r),
            Inner::Full => None,
        }
    }
    /// Elements of T per (token, block): r, or b_out if the inner factor is full.
    pub const fn width(&self) -> usize {
        match self.inner {
            Inner::LowRank(r) => r,
            Inner::Full => self.b_out,
        }
    }
    /// Elements of one token's T: a_in·width.
    pub const fn t_row(&self) -> usize {
        self.a_in * self.width()
    }
    /// Elements of A in θ: a_out·a_in, or 0 for LoRA.
    pub const fn a_len(&self) -> usize {
        match self.outer {
            Outer::Trained => self.a_out * self.a_in,
            Outer::One => 0,
        }
    }
    /// Elements of B in θ: b_out·r, or 0 if the inner factor is full.
    pub const fn b_len(&self) -> usize {
        match self.inner {
            Inner::LowRank(r) => self.b_out * r,
            Inner::Full => 0,
        }
    }
    /// Elements of C in θ: r·c_in; b_out·c_in for the full factor M.
    pub const fn c_len(&self) -> usize {
        self.width() * self.c_in
    }
    /// Elements of θ: the number of trained parameters.
    pub const fn params(&self) -> usize {
        self.a_len() + self.b_len() + self.c_len()
    }
    /// Upper bound of rank(ΔW) = rank(A)·rank(BC).
    pub fn max_rank(&self) -> usize {
        let inner = self.width().min(self.b_out).min(self.c_in);
        inner * self.a_out.min(self.a_in)
    }
}

impl std::fmt::Display for KronShape {
    /// Writes `4096×4096 kron (A 16×2) r 8`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{} ", self.d_out(), self.d_in())?;
        match (self.outer, self.inner) {
            (Outer::One, Inner::LowRank(r)) => write!(f, "lora r {r}"),
            (Outer::One, Inner::Full) => write!(f, "full"),
            (Outer::Trained, Inner::LowRank(r)) => {
                write!(f, "kron (A {}×{}) r {r}", self.a_out, self.a_in)
            }
            (Outer::Trained, Inner::Full) => {
                write!(f, "krona (A {}×{})", self.a_out, self.a_in)
            }
        }
    }
}
