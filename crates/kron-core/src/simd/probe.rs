//! What this machine can do at best: the roof that benchmarks are held against.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use super::isa::Isa;
use super::kernels::{Kernels, Products};
use super::vector::{Mac, Simd};
use crate::{Dtype, Element, Result};

/// Independent sums: more than the latency of a multiply-add times its rate.
const SUMS: usize = 12;

/// Multiply-adds of each sum per timed call.
const STEPS: usize = 1 << 20;

/// Float operations per second (a multiply-add is two) of the kernels' own
/// arithmetic for `dtype` activations, on `threads` threads of rayon's current
/// pool at once; the best of several trials, operands in registers.
///
/// # Errors
/// An instruction set that this machine lacks.
pub fn mul_add_rate(isa: Isa, dtype: Dtype, threads: usize) -> Result<f64> {
    let kernels = Kernels::new(isa, dtype, Products::Native)?;
    let operations = 2 * SUMS * STEPS * kernels.lanes() * kernels.pair() * threads;
    let best = (0..7)
        .map(|_| {
            let start = Instant::now();
            (0..threads).into_par_iter().with_max_len(1).for_each(|_| kernels.spin());
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    Ok(operations as f64 / best)
}

/// Bytes per second, read plus written, of copying `bytes` bytes on `threads`
/// threads of rayon's current pool; the median of several trials of whichever is
/// faster, the system's `memcpy` or stores that go around the cache.
pub fn copy_rate(bytes: usize, threads: usize) -> f64 {
    let len = (bytes / 8).max(threads);
    let from: Vec<u64> = (0..len as u64).collect();
    let mut to = vec![1u64; len];
    let part = len.div_ceil(threads);
    let mut rate = |copy: fn(&[u64], &mut [u64])| {
        let mut times: Vec<f64> = (0..9)
            .map(|_| {
                let start = Instant::now();
                (to.par_chunks_mut(part).with_max_len(1))
                    .zip(from.par_chunks(part))
                    .for_each(|(to, from)| copy(from, to));
                black_box(&to);
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        2.0 * 8.0 * len as f64 / times[times.len() / 2]
    };
    rate(|from, to| to.copy_from_slice(from)).max(rate(copy_around_cache))
}

#[cfg(target_arch = "x86_64")]
fn copy_around_cache(from: &[u64], to: &mut [u64]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    let skip = to.as_ptr().align_offset(16).min(to.len());
    to[..skip].copy_from_slice(&from[..skip]);
    let (from, to) = (&from[skip..to.len()], &mut to[skip..]);
    let whole = to.len() / 2;
    // SAFETY: SSE2 is part of x86-64; both slices have 2·whole numbers, and `to` is aligned to 16 bytes.
    unsafe {
        for i in 0..whole {
            let v = _mm_loadu_si128(from.as_ptr().cast::<__m128i>().add(i));
            _mm_stream_si128(to.as_mut_ptr().cast::<__m128i>().add(i), v);
        }
        _mm_sfence();
    }
    to[2 * whole..].copy_from_slice(&from[2 * whole..]);
}

#[cfg(not(target_arch = "x86_64"))]
fn copy_around_cache(from: &[u64], to: &mut [u64]) {
    to.copy_from_slice(from);
}

/// [`SUMS`] chains of [`STEPS`] multiply-adds.
///
/// # Safety
/// The CPU has the instruction set of `K`.
#[inline(always)]
pub(super) unsafe fn spin<K: Mac<E>, E: Element>() {
    let one = black_box([f32::from_bits(0x3f80_3f80); 1]);
    let small = black_box([f32::from_bits(0x3080_3080); 1]);
    // SAFETY: the same contract; both pointers are to one number.
    unsafe {
        let (a, b) = (K::S::splat(one.as_ptr()), K::S::splat(small.as_ptr()));
        let mut sums = [a; SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = K::mac(*sum, a, b);
            }
        }
        black_box(K::S::sums(sums));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_rates() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for dtype in Dtype::ALL {
                let rate = mul_add_rate(isa, dtype, 1).unwrap();
                assert!(rate.is_finite() && rate > 1e6, "{isa} {dtype}: {rate}");
            }
        }
        let rate = copy_rate(1 << 20, 2);
        assert!(rate.is_finite() && rate > 1e6, "{rate}");
    }
}
