//! [`Problem`]: what to compute, with sizes that later code can trust.

use crate::{Error, Result};

/// An activation's number format; θ, T and gradients are always float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// The name in kernels, files and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// An element of X, Y, dX, dY or W.
pub trait Element: Copy + sealed::Sealed {
    /// Which one it is; not named `DTYPE`, because kron-core's elements are these too.
    const FORMAT: Dtype;
}
impl Element for f32 {
    const FORMAT: Dtype = Dtype::F32;
}
impl Element for half::f16 {
    const FORMAT: Dtype = Dtype::F16;
}
impl Element for half::bf16 {
    const FORMAT: Dtype = Dtype::Bf16;
}

/// Sizes of ΔW = s·A ⊗ (B·C), each from 1 to 2³¹ − 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Factors {
    a_out: usize,
    a_in: usize,
    b_out: usize,
    c_in: usize,
    rank: usize,
    outer: bool,
    inner: bool,
}

impl Factors {
    /// Kron-LoRA: A is a_out × a_in, B is b_out × rank, C is rank × c_in, all in θ.
    ///
    /// # Errors
    /// A zero size, or one whose products leave the kernels' integers.
    pub fn kron(a_out: usize, a_in: usize, b_out: usize, c_in: usize, rank: usize) -> Result<Self> {
        Self { a_out, a_in, b_out, c_in, rank, outer: true, inner: true }.checked()
    }

    /// LoRA: A = \[1\] and not in θ.
    ///
    /// # Errors
    /// As [`Factors::kron`].
    pub fn lora(d_out: usize, d_in: usize, rank: usize) -> Result<Self> {
        Self { a_out: 1, a_in: 1, b_out: d_out, c_in: d_in, rank, outer: false, inner: true }.checked()
    }

    /// The same A with a full inner factor, b_out × c_in: B is the identity, C the factor.
    ///
    /// # Errors
    /// As [`Factors::kron`].
    pub fn full(self) -> Result<Self> {
        Self { rank: self.b_out, inner: false, ..self }.checked()
    }

    fn checked(self) -> Result<Self> {
        const LIMIT: u128 = i32::MAX as u128;
        let (a_out, a_in) = (self.a_out as u128, self.a_in as u128);
        let (b_out, c_in, rank) = (self.b_out as u128, self.c_in as u128, self.rank as u128);
        let sizes = [
            ("a_out", a_out),
            ("a_in", a_in),
            ("b_out", b_out),
            ("c_in", c_in),
            ("rank", rank),
            ("a_out·a_in", a_out.saturating_mul(a_in)),
            ("d_out = a_out·b_out", a_out.saturating_mul(b_out)),
            ("d_in = a_in·c_in", a_in.saturating_mul(c_in)),
            ("a_out·rank", a_out.saturating_mul(rank)),
            ("a_in·rank", a_in.saturating_mul(rank)),
            ("b_out·rank", b_out.saturating_mul(rank)),
            ("rank·c_in", rank.saturating_mul(c_in)),
        ];
        for (name, size) in sizes {
            if !(1..=LIMIT).contains(&size) {
                return Err(Error::Problem(format!("{name} is {size}, but a size is 1 to {LIMIT}")));
            }
        }
        Ok(self)
    }

    /// Rows of A.
    pub const fn a_out(&self) -> usize {
        self.a_out
    }
    /// Columns of A.
    pub const fn a_in(&self) -> usize {
        self.a_in
    }
    /// Rows of B.
    pub const fn b_out(&self) -> usize {
        self.b_out
    }
    /// Columns of C.
    pub const fn c_in(&self) -> usize {
        self.c_in
    }
    /// Columns of B; b_out for a full inner factor.
    pub const fn rank(&self) -> usize {
        self.rank
    }
    /// Whether B is in θ, that is, the inner factor is not full.
    pub const fn low_rank(&self) -> bool {
        self.inner
    }
    /// a_out·b_out.
    pub const fn d_out(&self) -> usize {
        self.a_out * self.b_out
    }
    /// a_in·c_in.
    pub const fn d_in(&self) -> usize {
        self.a_in * self.c_in
    }
    /// Elements of A in θ; 0 for LoRA.
    pub const fn a_len(&self) -> usize {
        if self.outer { self.a_out * self.a_in } else { 0 }
    }
    /// Elements of B in θ; 0 for a full inner factor.
    pub const fn b_len(&self) -> usize {
        if self.inner { self.b_out * self.rank } else { 0 }
    }
    /// Elements of C in θ.
    pub const fn c_len(&self) -> usize {
        self.rank * self.c_in
    }
    /// Elements of θ = \[A | B | C\].
    pub const fn params(&self) -> usize {
        self.a_len() + self.b_len() + self.c_len()
    }
    /// Elements of one token's T, ρ = a_in·rank.
    pub const fn t_row(&self) -> usize {
        self.a_in * self.rank
    }
}

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// T = X·Cᵀ, Y (+)= s·U·Bᵀ.
    Forward,
    /// θ's gradient, and dX when asked for.
    Backward {
        /// Whether dX is wanted.
        dx: bool,
    },
    /// W (+)= s·A ⊗ (B·C), for a band of rows.
    Merge,
}

impl Pass {
    /// The call's name in a profiler's timeline.
    pub const fn name(self) -> &'static str {
        match self {
            Pass::Forward => "kron_forward",
            Pass::Backward { .. } => "kron_backward",
            Pass::Merge => "kron_merge",
        }
    }
}

/// One call's sizes: all that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// The factors' sizes.
    pub factors: Factors,
    /// The activations' format.
    pub dtype: Dtype,
    /// Which call.
    pub pass: Pass,
    /// Tokens; rows of W in a merge.
    pub rows: usize,
    /// Whether Y, dX or W is added to.
    pub accumulate: bool,
    /// Whether every activation row and θ start on a 16-byte boundary.
    pub aligned: bool,
}
