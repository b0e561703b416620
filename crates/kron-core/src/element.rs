//! The three activation types: `f32`, `f16` and `bf16`.

use half::{bf16, f16};

/// An activation's number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: binary32 cut to 8 significant bits.
    Bf16,
}

impl Dtype {
    /// All of them, widest first.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// The name used in files, tables and on the command line.
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

    /// Unit roundoff: the largest relative error of one rounding to nearest.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            Dtype::F32 => 1.0 / (1u64 << 24) as f64,
            Dtype::F16 => 1.0 / (1u64 << 11) as f64,
            Dtype::Bf16 => 1.0 / (1u64 << 8) as f64,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Dtype {
    type Err = crate::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Dtype::ALL
            .into_iter()
            .find(|d| d.name() == s)
            .ok_or_else(|| crate::Error::Value(format!("dtype {s:?} is not one of f32, f16, bf16")))
    }
}

pub(crate) mod sealed {
    use crate::{Backward, Cpu, Forward, Isa, KronOp, Merge, Result};

    /// The CPU's loops of one element: compiled in this crate, and not once more, nor with
    /// other options, in each crate that calls them.
    pub trait Sealed: Sized {
        fn forward(isa: Isa, op: &KronOp, call: Forward<'_, Cpu, Self>) -> Result<()>
        where
            Self: super::Element;
        fn backward(isa: Isa, op: &KronOp, call: Backward<'_, Cpu, Self>) -> Result<()>
        where
            Self: super::Element;
        fn merge(isa: Isa, op: &KronOp, call: Merge<'_, Cpu, Self>) -> Result<()>
        where
            Self: super::Element;
    }
}

/// An element of X, Y, dX, dY or W. Every sum over elements is float32.
pub trait Element: Copy + Send + Sync + std::fmt::Debug + bytemuck::Pod + sealed::Sealed {
    /// Which one it is.
    const DTYPE: Dtype;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounded to nearest, ties to even.
    fn from_f32(v: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(v: f32) -> Self {
        v
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(v: f32) -> Self {
        f16::from_f32(v)
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(v: f32) -> Self {
        bf16::from_f32(v)
    }
}
