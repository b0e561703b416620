//! [`Isa`]: the instruction sets of the CPU backend, and their detection.

use crate::{Error, Result};

/// An instruction set of the CPU backend.
///
/// ```
/// use kron_core::Isa;
///
/// let best = Isa::detect();
/// assert!(best.is_available() && Isa::Portable.is_available());
/// assert_eq!("avx2".parse::<Isa>()?, Isa::Avx2);
/// # Ok::<(), kron_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Any CPU.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with BF16. Factors of bf16 activations are rounded to bf16 and
    /// multiplied in pairs, as on a tensor core; sums stay float32.
    Avx512Bf16,
}

impl Isa {
    /// All instruction sets, plainest first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// Name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Returns true if this machine has the instruction set.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            match self {
                Isa::Portable => true,
                Isa::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
                Isa::Avx512 => avx512,
                Isa::Avx512Bf16 => avx512 && has!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable
        }
    }

    /// Returns the best instruction set of this machine.
    pub fn detect() -> Self {
        let best = Isa::ALL.into_iter().rev().find(|isa| isa.is_available());
        best.unwrap_or(Isa::Portable)
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Isa {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Isa::ALL.into_iter().find(|isa| isa.name() == s).ok_or_else(|| {
            Error::Value(format!("instruction set {s:?} is not one of portable, avx2, avx512, avx512bf16"))
        })
    }
}
