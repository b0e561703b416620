//! AVX-512: F, BW, VL, DQ; and BF16 dot products.

use std::arch::x86_64::*;

use half::bf16;

use super::vector::{Mac, Simd};
use crate::{Dtype, Element};

const LANES: usize = 16;

/// Float32 arithmetic on 512-bit registers. `HAS_BF16` picks the rounding
/// instruction for bf16 stores; without it the same rounding is done on integers.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const HAS_BF16: bool>;

/// Returns the mask of lanes 0…n−1.
#[inline(always)]
fn mask(n: usize) -> __mmask16 {
    debug_assert!(n < LANES);
    (1 << n) - 1
}

impl<const HAS_BF16: bool> Avx512<HAS_BF16> {
    #[inline(always)]
    unsafe fn widen<E: Element>(raw: __m256i) -> __m512 {
        // SAFETY: the caller proves that the CPU has AVX-512.
        unsafe {
            match E::DTYPE {
                Dtype::F16 => _mm512_cvtph_ps(raw),
                _ => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(raw))),
            }
        }
    }

    #[inline(always)]
    unsafe fn narrow<E: Element>(v: __m512) -> __m256i {
        // SAFETY: the caller proves that the CPU has AVX-512, and BF16 when HAS_BF16.
        unsafe {
            match E::DTYPE {
                Dtype::F16 => _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v),
                _ if HAS_BF16 => std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)),
                _ => {
                    // Round to nearest even by adding half a unit, less one when the unit is even; keep NaN quiet.
                    let bits = _mm512_castps_si512(v);
                    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                    let round = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
                    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
                    let rounded = _mm512_mask_mov_epi32(_mm512_add_epi32(bits, round), nan, quiet);
                    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded))
                }
            }
        }
    }
}

impl<const HAS_BF16: bool> Simd for Avx512<HAS_BF16> {
    type V = __m512;
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        // SAFETY: the caller proves that the CPU has AVX-512.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> __m512 {
        // SAFETY: the caller passes a readable value, on a CPU with AVX-512.
        unsafe { _mm512_set1_ps(*p) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller proves that the CPU has AVX-512.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller proves that the CPU has AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn sums<const R: usize>(v: [__m512; R]) -> [f32; R] {
        let mut out = [0.0; R];
        // SAFETY: the caller proves that the CPU has AVX-512; each chunk of
        // `out` holds the 8, 4 or 1 values that are stored to it.
        unsafe {
            let mut quad = [_mm_setzero_ps(); R];
            for i in 0..R {
                let half = _mm256_add_ps(_mm512_castps512_ps256(v[i]), _mm512_extractf32x8_ps::<1>(v[i]));
                quad[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            }
            let mut i = 0;
            while i + 4 <= R {
                let (ab, cd) = (_mm_hadd_ps(quad[i], quad[i + 1]), _mm_hadd_ps(quad[i + 2], quad[i + 3]));
                _mm_storeu_ps(out.as_mut_ptr().add(i), _mm_hadd_ps(ab, cd));
                i += 4;
            }
            while i < R {
                let pair = _mm_hadd_ps(quad[i], quad[i]);
                out[i] = _mm_cvtss_f32(_mm_hadd_ps(pair, pair));
                i += 1;
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn load<E: Element>(p: *const E) -> __m512 {
        // SAFETY: the caller passes 16 readable elements of this dtype, on a CPU with AVX-512.
        unsafe {
            match E::DTYPE {
                Dtype::F32 => _mm512_loadu_ps(p.cast()),
                _ => Self::widen::<E>(_mm256_loadu_si256(p.cast())),
            }
        }
    }
    #[inline(always)]
    unsafe fn load_n<E: Element>(p: *const E, n: usize) -> __m512 {
        // SAFETY: the caller passes n readable elements; the mask reads no others.
        unsafe {
            match E::DTYPE {
                Dtype::F32 => _mm512_maskz_loadu_ps(mask(n), p.cast()),
                _ => Self::widen::<E>(_mm256_maskz_loadu_epi16(mask(n), p.cast())),
            }
        }
    }
    #[inline(always)]
    unsafe fn store<E: Element>(p: *mut E, v: __m512) {
        // SAFETY: the caller passes 16 writable elements of this dtype, on a CPU with AVX-512.
        unsafe {
            match E::DTYPE {
                Dtype::F32 => _mm512_storeu_ps(p.cast(), v),
                _ => _mm256_storeu_si256(p.cast(), Self::narrow::<E>(v)),
            }
        }
    }
    #[inline(always)]
    unsafe fn store_n<E: Element>(p: *mut E, v: __m512, n: usize) {
        // SAFETY: the caller passes n writable elements; the mask writes no others.
        unsafe {
            match E::DTYPE {
                Dtype::F32 => _mm512_mask_storeu_ps(p.cast(), mask(n), v),
                _ => _mm256_mask_storeu_epi16(p.cast(), mask(n), Self::narrow::<E>(v)),
            }
        }
    }
    #[inline(always)]
    unsafe fn load_transposed(p: *const f32, stride: usize) -> [__m512; 4] {
        // SAFETY: the caller passes 16 readable fours, `stride` apart, on a CPU with AVX-512.
        unsafe {
            let mut v = [_mm512_setzero_ps(); 4];
            for i in 0..4 {
                let mut quarters = [_mm_setzero_ps(); 4];
                for q in 0..4 {
                    quarters[q] = _mm_loadu_ps(p.add((4 * q + i) * stride));
                }
                let low = _mm256_set_m128(quarters[1], quarters[0]);
                let high = _mm256_set_m128(quarters[3], quarters[2]);
                v[i] = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
            }
            transpose_quarters(v)
        }
    }
    #[inline(always)]
    unsafe fn add_transposed(v: [__m512; 4], p: *mut f32, stride: usize) {
        // SAFETY: the caller passes 16 writable fours, `stride` apart, on a CPU with AVX-512.
        unsafe {
            let v = transpose_quarters(v);
            for i in 0..4 {
                let quarters = [
                    _mm512_castps512_ps128(v[i]),
                    _mm512_extractf32x4_ps::<1>(v[i]),
                    _mm512_extractf32x4_ps::<2>(v[i]),
                    _mm512_extractf32x4_ps::<3>(v[i]),
                ];
                for q in 0..4 {
                    let p = p.add((4 * q + i) * stride);
                    _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), quarters[q]));
                }
            }
        }
    }
}

/// Transposes the 4 × 4 matrix in each quarter of the four registers.
#[inline(always)]
unsafe fn transpose_quarters(v: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: the caller proves that the CPU has AVX-512.
    unsafe {
        let (a, b) = (_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpacklo_ps(v[2], v[3]));
        let (c, d) = (_mm512_unpackhi_ps(v[0], v[1]), _mm512_unpackhi_ps(v[2], v[3]));
        [
            _mm512_shuffle_ps::<0x44>(a, b),
            _mm512_shuffle_ps::<0xee>(a, b),
            _mm512_shuffle_ps::<0x44>(c, d),
            _mm512_shuffle_ps::<0xee>(c, d),
        ]
    }
}

/// bf16 × bf16 products added in pairs, with float32 sums: twice the rate of
/// float32. Factors are rounded to bf16, as on a tensor core.
#[derive(Clone, Copy)]
pub(super) struct Dot;

/// Permutation that interleaves two rows: lane i holds element i of the first row (low half) and of the second.
const ZIP: [u16; 32] = {
    let mut index = [0; 32];
    let mut i = 0;
    while i < 16 {
        index[2 * i] = i as u16;
        index[2 * i + 1] = 32 + i as u16;
        i += 1;
    }
    index
};

impl Dot {
    #[inline(always)]
    unsafe fn bits(v: __m512) -> __m512bh {
        // SAFETY: both are 64 bytes of plain bits.
        unsafe { std::mem::transmute(v) }
    }

    /// Interleaves 16 elements of two rows into 16 pairs.
    #[inline(always)]
    unsafe fn zip(p: __m256i, q: __m256i) -> __m512 {
        // SAFETY: the caller proves that the CPU has AVX-512; ZIP is 64 readable bytes.
        unsafe {
            let index = _mm512_loadu_si512(ZIP.as_ptr().cast());
            let (p, q) = (_mm512_castsi256_si512(p), _mm512_castsi256_si512(q));
            _mm512_castsi512_ps(_mm512_permutex2var_epi16(p, index, q))
        }
    }
}

impl Mac<bf16> for Dot {
    type S = Avx512<true>;
    const PAIR: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const bf16) -> __m512 {
        // SAFETY: the caller passes 32 readable elements, on a CPU with AVX-512.
        unsafe { _mm512_loadu_ps(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const bf16, n: usize) -> __m512 {
        debug_assert!(n < 2 * LANES);
        // SAFETY: the caller passes n readable elements; the mask reads no others.
        unsafe { _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((1 << n) - 1, p.cast())) }
    }
    #[inline(always)]
    unsafe fn rows(p: *const bf16, q: *const bf16) -> __m512 {
        // SAFETY: the caller passes 16 readable elements of each row, on a CPU with AVX-512.
        unsafe { Self::zip(_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(q.cast())) }
    }
    #[inline(always)]
    unsafe fn rows_n(p: *const bf16, q: Option<*const bf16>, n: usize) -> __m512 {
        let m = ((1u32 << n) - 1) as __mmask16;
        // SAFETY: the caller passes n ≤ 16 readable elements of each row; the mask reads no others.
        unsafe {
            let second = match q {
                Some(q) => _mm256_maskz_loadu_epi16(m, q.cast()),
                None => _mm256_setzero_si256(),
            };
            Self::zip(_mm256_maskz_loadu_epi16(m, p.cast()), second)
        }
    }
    #[inline(always)]
    unsafe fn columns(low: __m512, high: __m512) -> __m512 {
        // SAFETY: the caller proves that the CPU has AVX-512 BF16; both types are 64 bytes of plain bits.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
    }
    #[inline(always)]
    unsafe fn ranks(low: __m512, high: __m512) -> __m512 {
        // SAFETY: the caller proves that the CPU has AVX-512 BF16.
        unsafe { Self::zip(Self::S::narrow::<bf16>(low), Self::S::narrow::<bf16>(high)) }
    }
    #[inline(always)]
    unsafe fn mac(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller proves that the CPU has AVX-512 BF16.
        unsafe { _mm512_dpbf16_ps(acc, Self::bits(a), Self::bits(b)) }
    }
}
