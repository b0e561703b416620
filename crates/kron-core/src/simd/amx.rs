//! Float32 products on the matrix unit of recent Intel processors (AMX), which multiplies bf16 and sums in float32.
//!
//! A float32 number is the sum of three bf16 numbers, exactly: the nearest one, the nearest to what is left, and the
//! rest. Six of the nine products of such parts are computed; the other three are together about half of float32's
//! own rounding, since |x₂| ≤ 2⁻⁹·|x| and |x₃| ≤ 2⁻¹⁷·|x|.
//!
//! ```text
//! x = x₁ + x₂ + x₃        x·w ≈ x₁w₁ + x₁w₂ + x₂w₁ + x₂w₂ + x₁w₃ + x₃w₁
//! ```
//!
//! Both operands are packed into panels: 32 rows of x, or 32 columns of w. A panel holds, for each 32 positions of
//! the inner dimension, three parts of two tiles; a tile is 16 rows of 16 pairs. A pair is positions k and k + 16, so
//! that both operands are split lane by lane.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Rows or columns of a panel, and of the square of y that a step computes.
pub(crate) const PANEL: usize = 32;
/// Positions of the inner dimension of a step.
pub(crate) const STEP: usize = 32;
/// Rows or columns of a tile, lanes of a vector, and pairs of a tile's row.
const TILE: usize = 16;
/// Parts of a number.
const PARTS: usize = 3;
/// Lines of a panel's step.
pub(crate) const LINES: usize = PARTS * 2 * TILE;

/// 16 pairs of bf16 numbers: a row of a tile, and a line of the cache.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Line([u32; TILE]);

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
    pub fn configured(self) -> Tiles {
        let mut config = Config { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        config.bytes[..8].fill(64);
        config.rows[..8].fill(TILE as u8);
        // SAFETY: `Amx` proves that the unit exists and is lent; the configuration is legal, and no tile that is in
        // use is lost, because the guards of a thread do not overlap: `product` makes one in a task that calls no other.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Tiles(())
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

/// A thread's configured tiles.
pub(crate) struct Tiles(());

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the unit exists, and the tiles hold nothing that is still needed.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

impl Tiles {
    /// Computes the square y = a·b of two packed panels, or y += a·b.
    ///
    /// # Safety
    /// `a` and `b` are `steps` packed steps of a panel, `y` is [`PANEL`] rows of as many float32 numbers, `stride`
    /// numbers apart, and nobody else uses them.
    pub unsafe fn multiply(
        &self,
        a: *const Line,
        b: *const Line,
        steps: usize,
        y: *mut f32,
        stride: usize,
        add: bool,
    ) {
        let down = TILE * stride;
        // SAFETY: tiles are configured, which `self` proves. A step reads LINES lines of each panel and advances by as
        // many; y's four tiles are 16 rows of 64 bytes each within the 32 × 32 numbers.
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
            asm!(
                "2:",
                "tileloadd tmm4, [{a} + {s}*1]", "tileloadd tmm5, [{a} + {s}*1 + 1024]",
                "tileloadd tmm6, [{b} + {s}*1 + 4096]", "tileloadd tmm7, [{b} + {s}*1 + 5120]",
                // x₁w₃
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm6, [{b} + {s}*1 + 2048]", "tileloadd tmm7, [{b} + {s}*1 + 3072]",
                // x₁w₂
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm4, [{a} + {s}*1 + 2048]", "tileloadd tmm5, [{a} + {s}*1 + 3072]",
                // x₂w₂
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm6, [{b} + {s}*1]", "tileloadd tmm7, [{b} + {s}*1 + 1024]",
                // x₂w₁
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm4, [{a} + {s}*1 + 4096]", "tileloadd tmm5, [{a} + {s}*1 + 5120]",
                // x₃w₁
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "tileloadd tmm4, [{a} + {s}*1]", "tileloadd tmm5, [{a} + {s}*1 + 1024]",
                // x₁w₁
                "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 6144", "add {b}, 6144", "dec {n}", "jnz 2b",
                a = inout(reg) a => _, b = inout(reg) b => _, n = inout(reg) steps => _, s = in(reg) 64usize,
                options(nostack, readonly));
            asm!(
                "tilestored [{} + {s}*1], tmm0", "tilestored [{} + {s}*1], tmm1",
                "tilestored [{} + {s}*1], tmm2", "tilestored [{} + {s}*1], tmm3",
                in(reg) corners[0], in(reg) corners[1], in(reg) corners[2], in(reg) corners[3], s = in(reg) bytes,
                options(nostack));
        }
    }
}

/// A matrix to be packed: its outer dimension is that of the panels, its inner one is summed over.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    pub at: *const f32,
    /// Numbers from one position to the next.
    pub outer: isize,
    pub inner: isize,
    /// Positions that exist; the others are zeros.
    pub outer_len: usize,
    pub inner_len: usize,
    /// True for the rows of x, false for the columns of w.
    pub rows: bool,
}

impl Source {
    /// Packs one step of a panel.
    ///
    /// # Safety
    /// The matrix exists, and the processor has AVX-512 BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub unsafe fn pack(&self, outer: usize, inner: usize, to: &mut [MaybeUninit<Line>]) {
        for tile in 0..2 {
            let first = outer + tile * TILE;
            // SAFETY: blocks beyond the matrix are not read.
            let (low, high) = unsafe { (self.block(first, inner), self.block(first, inner + TILE)) };
            for row in 0..TILE {
                let parts = split(low[row], high[row]);
                for part in 0..PARTS {
                    to[(part * 2 + tile) * TILE + row].write(Line::from(parts[part]));
                }
            }
        }
    }

    /// Returns a block of 16 × 16 numbers: rows of x, or rows of w.
    ///
    /// # Safety
    /// As [`Source::pack`].
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn block(&self, outer: usize, inner: usize) -> [__m512; TILE] {
        let left = |len: usize, first: usize| len.saturating_sub(first).min(TILE);
        let (outers, inners) = (left(self.outer_len, outer), left(self.inner_len, inner));
        if outers == 0 || inners == 0 {
            return [_mm512_setzero_ps(); TILE];
        }
        // SAFETY: both positions exist.
        let at = unsafe { self.at.offset(outer as isize * self.outer + inner as isize * self.inner) };
        let (outer, inner) = ((self.outer, outers), (self.inner, inners));
        let ((row, rows), (lane, lanes)) = if self.rows { (outer, inner) } else { (inner, outer) };
        // SAFETY: so many rows and lanes from there exist.
        unsafe {
            if lane == 1 {
                load(at, row, rows, lanes)
            } else if row == 1 {
                transposed(load(at, lane, lanes, rows))
            } else {
                gathered(at, (row, rows), (lane, lanes))
            }
        }
    }
}

/// Loads rows of contiguous numbers; the others are zeros.
#[target_feature(enable = "avx512f")]
unsafe fn load(at: *const f32, stride: isize, rows: usize, lanes: usize) -> [__m512; TILE] {
    let mask = ((1u32 << lanes) - 1) as u16;
    let mut block = [_mm512_setzero_ps(); TILE];
    for (row, to) in block.iter_mut().enumerate().take(rows) {
        // SAFETY: the caller's row, of which the mask reads `lanes` numbers.
        *to = unsafe { _mm512_maskz_loadu_ps(mask, at.offset(row as isize * stride)) };
    }
    block
}

/// Loads numbers of any strides; the others are zeros.
#[target_feature(enable = "avx512f")]
unsafe fn gathered(
    at: *const f32,
    (row, rows): (isize, usize),
    (lane, lanes): (isize, usize),
) -> [__m512; TILE] {
    let mut block = [_mm512_setzero_ps(); TILE];
    for (i, to) in block.iter_mut().enumerate().take(rows) {
        let mut numbers = [0.0; TILE];
        for (j, number) in numbers.iter_mut().enumerate().take(lanes) {
            // SAFETY: the caller's element.
            *number = unsafe { *at.offset(i as isize * row + j as isize * lane) };
        }
        // SAFETY: 16 numbers.
        *to = unsafe { _mm512_loadu_ps(numbers.as_ptr()) };
    }
    block
}

/// Transposes a block.
#[target_feature(enable = "avx512f")]
fn transposed(r: [__m512; TILE]) -> [__m512; TILE] {
    let (mut a, mut b, mut t) = (r, r, r);
    for i in (0..TILE).step_by(2) {
        a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for i in (0..TILE).step_by(4) {
        for half in 0..2 {
            let (x, y) = (_mm512_castps_pd(a[i + half]), _mm512_castps_pd(a[i + half + 2]));
            b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
            b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
        }
    }
    // b[4·i + c] holds in its quarter l the numbers of column 4·l + c in rows 4·i to 4·i + 3.
    for c in 0..4 {
        let (x, y) = ((b[c], b[4 + c]), (b[8 + c], b[12 + c]));
        let even = [_mm512_shuffle_f32x4::<0x88>(x.0, x.1), _mm512_shuffle_f32x4::<0x88>(y.0, y.1)];
        let odd = [_mm512_shuffle_f32x4::<0xdd>(x.0, x.1), _mm512_shuffle_f32x4::<0xdd>(y.0, y.1)];
        t[c] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
        t[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
        t[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
        t[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
    }
    t
}

/// Splits numbers into their three parts; each pair has a part of `low` in its lower half and of `high` in its upper.
///
/// The second part of an infinity or a NaN is NaN, and so is every result that it takes part in.
#[target_feature(enable = "avx512f")]
fn split(mut low: __m512, mut high: __m512) -> [__m512i; PARTS] {
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for pairs in &mut parts {
        let (first, second) = (nearest(low), nearest(high));
        low = _mm512_sub_ps(low, _mm512_castsi512_ps(first));
        high = _mm512_sub_ps(high, _mm512_castsi512_ps(second));
        *pairs = _mm512_or_si512(_mm512_srli_epi32::<16>(first), second);
    }
    parts
}

/// Returns the nearest bf16 numbers, in the upper halves. The largest numbers and NaN are cut off
/// instead, not to overflow.
#[target_feature(enable = "avx512f")]
fn nearest(v: __m512) -> __m512i {
    /// Least number that would be rounded to infinity.
    const BEYOND: f32 = f32::from_bits(0x7f7f_8000);
    let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let bits = _mm512_castps_si512(v);
    let rounded = _mm512_add_epi32(bits, _mm512_set1_epi32(0x8000));
    let beyond = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(v), _mm512_set1_ps(BEYOND));
    _mm512_and_si512(_mm512_mask_mov_epi32(rounded, beyond, bits), upper)
}

impl Line {
    #[target_feature(enable = "avx512f")]
    fn from(pairs: __m512i) -> Self {
        let mut line = Self([0; TILE]);
        // SAFETY: a line is 64 bytes.
        unsafe { _mm512_store_si512((&raw mut line).cast(), pairs) };
        line
    }
}
