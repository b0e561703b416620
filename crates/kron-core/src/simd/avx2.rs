//! AVX2, FMA and F16C: eight lanes, sixteen registers.

use std::arch::x86_64::*;

use super::vector::Simd;
use crate::{Dtype, Element};

const LANES: usize = 8;

#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// The eight entries from index 8 − n on have n lanes set, then zeros.
static MASK: [i32; 2 * LANES] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    debug_assert!(n < LANES);
    // SAFETY: n ≤ 8, so the window lies inside MASK; the caller proves AVX2.
    unsafe { _mm256_loadu_si256(MASK.as_ptr().add(LANES - n).cast()) }
}

#[inline(always)]
unsafe fn widen<E: Element>(raw: __m128i) -> __m256 {
    // SAFETY: the caller proves that the CPU has AVX2 and F16C.
    unsafe {
        match E::DTYPE {
            Dtype::F16 => _mm256_cvtph_ps(raw),
            _ => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(raw))),
        }
    }
}

#[inline(always)]
unsafe fn narrow<E: Element>(v: __m256) -> __m128i {
    // SAFETY: the caller proves that the CPU has AVX2 and F16C.
    unsafe {
        if E::DTYPE == Dtype::F16 {
            return _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
        }
        // Round to nearest even by adding half a unit, less one when the unit is even; keep NaN quiet.
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        let high = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256::<1>(high))
    }
}

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = LANES;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: the caller proves that the CPU has AVX2.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> __m256 {
        // SAFETY: the caller passes a readable value, on a CPU with AVX2.
        unsafe { _mm256_set1_ps(*p) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller proves that the CPU has AVX2.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(acc: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller proves that the CPU has FMA.
        unsafe { _mm256_fmadd_ps(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn sums<const R: usize>(v: [__m256; R]) -> [f32; R] {
        let mut out = [0.0; R];
        // SAFETY: the caller proves that the CPU has AVX2; four values are
        // stored only where four are left in `out`.
        unsafe {
            let mut quad = [_mm_setzero_ps(); R];
            for i in 0..R {
                quad[i] = _mm_add_ps(_mm256_castps256_ps128(v[i]), _mm256_extractf128_ps::<1>(v[i]));
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
    unsafe fn load<E: Element>(p: *const E) -> __m256 {
        // SAFETY: the caller passes 8 readable elements of this dtype, on a CPU with AVX2.
        unsafe {
            match E::DTYPE {
                Dtype::F32 => _mm256_loadu_ps(p.cast()),
                _ => widen::<E>(_mm_loadu_si128(p.cast())),
            }
        }
    }
    #[inline(always)]
    unsafe fn load_n<E: Element>(p: *const E, n: usize) -> __m256 {
        // SAFETY: the caller passes n readable elements; the mask, or the copy, reads no others.
        unsafe {
            match E::DTYPE {
                Dtype::F32 => _mm256_maskload_ps(p.cast(), mask(n)),
                _ => {
                    let mut tail = [0u16; LANES];
                    std::ptr::copy_nonoverlapping(p.cast(), tail.as_mut_ptr(), n);
                    widen::<E>(_mm_loadu_si128(tail.as_ptr().cast()))
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn store<E: Element>(p: *mut E, v: __m256) {
        // SAFETY: the caller passes 8 writable elements of this dtype, on a CPU with AVX2.
        unsafe {
            match E::DTYPE {
                Dtype::F32 => _mm256_storeu_ps(p.cast(), v),
                _ => _mm_storeu_si128(p.cast(), narrow::<E>(v)),
            }
        }
    }
    #[inline(always)]
    unsafe fn store_n<E: Element>(p: *mut E, v: __m256, n: usize) {
        // SAFETY: the caller passes n writable elements; the mask, or the copy, writes no others.
        unsafe {
            match E::DTYPE {
                Dtype::F32 => _mm256_maskstore_ps(p.cast(), mask(n), v),
                _ => {
                    let mut tail = [0u16; LANES];
                    _mm_storeu_si128(tail.as_mut_ptr().cast(), narrow::<E>(v));
                    std::ptr::copy_nonoverlapping(tail.as_ptr(), p.cast(), n);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn load_transposed(p: *const f32, stride: usize) -> [__m256; 4] {
        // SAFETY: the caller passes 8 readable fours, `stride` apart, on a CPU with AVX2.
        unsafe {
            let mut v = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                v[i] = _mm256_loadu2_m128(p.add((i + 4) * stride), p.add(i * stride));
            }
            transpose_halves(v)
        }
    }
    #[inline(always)]
    unsafe fn add_transposed(v: [__m256; 4], p: *mut f32, stride: usize) {
        // SAFETY: the caller passes 8 writable fours, `stride` apart, on a CPU with AVX2.
        unsafe {
            let v = transpose_halves(v);
            for i in 0..4 {
                let (low, high) = (p.add(i * stride), p.add((i + 4) * stride));
                let sum = _mm256_add_ps(_mm256_loadu2_m128(high, low), v[i]);
                _mm256_storeu2_m128(high, low, sum);
            }
        }
    }
}

/// Transposes the 4 × 4 matrix in each half of the four registers.
#[inline(always)]
unsafe fn transpose_halves(v: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: the caller proves that the CPU has AVX2.
    unsafe {
        let (a, b) = (_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpacklo_ps(v[2], v[3]));
        let (c, d) = (_mm256_unpackhi_ps(v[0], v[1]), _mm256_unpackhi_ps(v[2], v[3]));
        [
            _mm256_shuffle_ps::<0x44>(a, b),
            _mm256_shuffle_ps::<0xee>(a, b),
            _mm256_shuffle_ps::<0x44>(c, d),
            _mm256_shuffle_ps::<0xee>(c, d),
        ]
    }
}
