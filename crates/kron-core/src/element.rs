//! [`Dtype`] and [`Element`]: the three activation types, `f32`, `f16` and `bf16`.

use half::{bf16, f16};

/// Number format of activations.
///
/// ```
/// use kron_core::Dtype;
///
/// let dtype: Dtype = "bf16".parse()?;
/// assert_eq!((dtype.name(), dtype.size()), ("bf16", 2));
/// assert!("f64".parse::<Dtype>().is_err());
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: binary32 with 8 significant bits.
    Bf16,
}

impl Dtype {
    /// All number formats, widest first.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// Name in files, in tables and on the command line.
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
    use super::Element;
    use crate::Result;

    /// A function with one body for each element type.
    ///
    /// The bodies are compiled in this crate, and not again, with other options, in each
    /// crate that calls them.
    pub trait PerElement {
        /// Arguments of the body for `E`.
        type Arguments<E: Element>;
        /// Body for `f32`.
        fn f32(arguments: Self::Arguments<f32>) -> Result<()>;
        /// Body for `f16`.
        fn f16(arguments: Self::Arguments<half::f16>) -> Result<()>;
        /// Body for `bf16`.
        fn bf16(arguments: Self::Arguments<half::bf16>) -> Result<()>;
    }

    /// The three element types: no other crate can implement it.
    pub trait Sealed: Sized {
        /// Runs the body for this type.
        fn run<F: PerElement>(arguments: F::Arguments<Self>) -> Result<()>
        where
            Self: Element;
    }
}

/// An element of X, Y, dX, dY or W. Every sum over elements is float32.
///
/// ```
/// use half::bf16;
/// use kron_core::{Dtype, Element};
///
/// fn round_trip<E: Element>(v: f32) -> (Dtype, f32) {
///     (E::DTYPE, E::from_f32(v).to_f32())
/// }
/// assert_eq!(round_trip::<f32>(0.1), (Dtype::F32, 0.1));
/// assert_eq!(round_trip::<bf16>(0.1), (Dtype::Bf16, 0.100_097_656));
/// ```
pub trait Element: Copy + Send + Sync + std::fmt::Debug + bytemuck::Pod + sealed::Sealed {
    /// Number format of the type.
    const DTYPE: Dtype;
    /// Converts to float32, exactly.
    fn to_f32(self) -> f32;
    /// Rounds to the nearest element, ties to even.
    fn from_f32(v: f32) -> Self;
}

/// Implements [`sealed::Sealed`] by the body of the same name.
macro_rules! seal {
    ($($element:ty: $body:ident),*) => {$(
        impl sealed::Sealed for $element {
            fn run<F: sealed::PerElement>(arguments: F::Arguments<Self>) -> crate::Result<()> {
                F::$body(arguments)
            }
        }
    )*};
}

seal!(f32: f32, f16: f16, bf16: bf16);

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
