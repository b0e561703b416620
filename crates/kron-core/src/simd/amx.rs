//! Float32 products on the matrix unit of recent Intel processors (AMX), which multiplies bf16 and sums in float32.
//!
//! A float32 number is the sum of three bf16 numbers, exactly: the nearest one, the nearest to what is left, and the
//! rest. Six of the nine products of such parts are computed; the other three are together at most 2⁻²⁴·|x·w|, one
//! rounding of float32, since |x₂| ≤ 2⁻⁸·|x| and |x₃| ≤ 2⁻¹⁷·|x|. The unit takes subnormal numbers for zeros.
//!
//! ```text
//! x = x₁ + x₂ + x₃        x·w ≈ x₁w₁ + x₁w₂ + x₂w₁ + x₂w₂ + x₁w₃ + x₃w₁
//! ```
//!
//! The weights of most models are published in bf16. Then w₂ and w₃ are zero, and three products give the exact sum of
//! all nine; x is then split by its bits, which takes fewer instructions.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

use super::amx_panel::{Panel, Parts, TILE};

/// A tile configuration: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// The matrix unit of the processor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx(());

impl Amx {
    /// Returns the unit, if the processor has one and the system lends it to this process.
    pub fn new() -> Option<Self> {
        // No lock, which a process that is forked meanwhile would find held for ever.
        static FOUND: AtomicU8 = AtomicU8::new(UNKNOWN);
        const UNKNOWN: u8 = 2;
        let mut found = FOUND.load(Relaxed);
        if found == UNKNOWN {
            let vectors = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            found = u8::from(vectors && has_tiles() && is_permitted());
            FOUND.store(found, Relaxed);
        }
        (found == 1).then_some(Self(()))
    }

    /// Configures the tiles of this thread until the guard is dropped.
    ///
    /// # Safety
    /// The thread has no other guard.
    pub unsafe fn configured(self) -> Tiles {
        let mut config = Config { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        config.bytes[..8].fill(64);
        config.rows[..8].fill(TILE as u8);
        // SAFETY: `Amx` proves that the unit exists and is lent; the configuration is legal, and by the caller's promise
        // no tile is in use.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Tiles(PhantomData)
    }
}

/// Returns true if the processor multiplies tiles of bf16.
fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    // The highest leaf is at least 7 where AVX-512 was found.
    let features = __cpuid_count(7, 0).edx;
    features & (BF16 | TILES) == BF16 | TILES
}

/// Asks the system for the tiles' registers; the answer holds for all threads of the process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes two numbers, touches no memory of the process, and returns an error on older systems.
    unsafe {
        asm!("syscall", inlateout("rax") result, in("rdi") REQUEST, in("rsi") TILE_DATA, out("rcx") _,
            out("r11") _, options(nostack));
    }
    result == 0
}

/// Returns false: how another system lends the registers was not tried.
#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// A thread's configured tiles; another thread has its own.
pub(crate) struct Tiles(PhantomData<*const ()>);

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the unit exists, and the tiles hold nothing that is still needed.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// Loads part `$part` of both tiles of x.
macro_rules! x {
    ($part:literal) => {
        concat!(
            "tileloadd tmm4, [{a} + {s}*1 + 2048*",
            $part,
            "]\n",
            "tileloadd tmm5, [{a} + {s}*1 + 2048*",
            $part,
            " + 1024]"
        )
    };
}

/// Loads part `$part` of both tiles of w.
macro_rules! w {
    ($part:literal) => {
        concat!(
            "tileloadd tmm6, [{b} + {s}*1 + 2048*",
            $part,
            "]\n",
            "tileloadd tmm7, [{b} + {s}*1 + 2048*",
            $part,
            " + 1024]"
        )
    };
}

/// Adds the products of the loaded parts to the square.
macro_rules! xw {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\n tdpbf16ps tmm1, tmm4, tmm7\n\
         tdpbf16ps tmm2, tmm5, tmm6\n tdpbf16ps tmm3, tmm5, tmm7"
    };
}

/// Runs instructions for each step of two panels. Each step asks for two further rows of y, `$row` bytes apart, which are
/// then there when they are stored; those beyond the square are its neighbour's.
macro_rules! steps {
    ($a:ident, $b:ident, $steps:ident, $y:ident, $row:ident, $($instructions:expr),*) => {
        asm!("2:",
            "prefetchw [{y}]", "prefetchw [{y} + 64]", "add {y}, {row}",
            "prefetchw [{y}]", "prefetchw [{y} + 64]", "add {y}, {row}",
            $($instructions),*, "add {a}, {a_step}", "add {b}, {b_step}", "dec {n}", "jnz 2b",
            a = inout(reg) $a.lines => _, b = inout(reg) $b.lines => _, n = inout(reg) $steps => _,
            s = in(reg) 64usize, a_step = in(reg) $a.parts.lines() * 64, b_step = in(reg) $b.parts.lines() * 64,
            y = inout(reg) $y => _, row = in(reg) $row, options(nostack, readonly))
    };
}

impl Tiles {
    /// Computes the square y = a·b of two packed panels, or y += a·b.
    ///
    /// # Safety
    /// `a` and `b` are `steps` packed steps of a panel, at least one, `y` is [`PANEL`] rows of as many float32 numbers, `stride`
    /// numbers apart, and nobody else uses them.
    pub unsafe fn multiply(&self, a: Panel, b: Panel, steps: usize, y: *mut f32, stride: usize, add: bool) {
        let down = TILE * stride;
        // SAFETY: tiles are configured, which `self` proves. A step reads the lines of its parts of each panel and
        // advances by as many; y's four tiles are 16 rows of 64 bytes each within the 32 × 32 numbers. Any address may
        // be prefetched.
        unsafe {
            let corners = [y, y.add(TILE), y.add(down), y.add(down + TILE)];
            let bytes = stride * 4;
            match add {
                true => asm!(
                    "tileloadd tmm0, [{} + {s}*1]", "tileloadd tmm1, [{} + {s}*1]",
                    "tileloadd tmm2, [{} + {s}*1]", "tileloadd tmm3, [{} + {s}*1]",
                    in(reg) corners[0], in(reg) corners[1], in(reg) corners[2], in(reg) corners[3], s = in(reg) bytes,
                    options(nostack, readonly)),
                false => asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem)
                ),
            }
            // The largest product, x₁w₁, comes last.
            match (a.parts, b.parts) {
                (Parts::One, Parts::One) => steps!(a, b, steps, y, bytes, x!(0), w!(0), xw!()),
                (Parts::One, Parts::Three) => {
                    steps!(a, b, steps, y, bytes, x!(0), w!(2), xw!(), w!(1), xw!(), w!(0), xw!());
                }
                (Parts::Three, Parts::One) => {
                    steps!(a, b, steps, y, bytes, w!(0), x!(2), xw!(), x!(1), xw!(), x!(0), xw!());
                }
                (Parts::Three, Parts::Three) => {
                    steps!(
                        a,
                        b,
                        steps,
                        y,
                        bytes,
                        x!(0),
                        w!(2),
                        xw!(),
                        w!(1),
                        xw!(),
                        x!(1),
                        xw!(),
                        w!(0),
                        xw!(),
                        x!(2),
                        xw!(),
                        x!(0),
                        xw!()
                    );
                }
            }
            asm!(
                "tilestored [{} + {s}*1], tmm0", "tilestored [{} + {s}*1], tmm1",
                "tilestored [{} + {s}*1], tmm2", "tilestored [{} + {s}*1], tmm3",
                in(reg) corners[0], in(reg) corners[1], in(reg) corners[2], in(reg) corners[3], s = in(reg) bytes,
                options(nostack));
        }
    }
}
