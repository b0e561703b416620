//! Peak arithmetic and copy rates of this machine, the upper bounds of the benchmarks.
//!
//! ```
//! use kron_core::{Cpu, Dtype, probe};
//!
//! let flops_per_s = probe::mul_add_rate(Cpu::new().isa(), Dtype::F32, 1)?;
//! let bytes_per_s = probe::copy_rate(1 << 20, 1);
//! assert!(flops_per_s > 0.0 && bytes_per_s > 0.0);
//! # Ok::<(), kron_core::Error>(())
//! ```

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use super::isa::Isa;
use super::kernels::{Kernels, Products};
use super::spin::{STEPS, SUMS};
use crate::{Dtype, Result};

/// Measures the float operations per second of the kernels' arithmetic for `dtype`
/// activations, on `threads` threads of rayon's current pool.
///
/// Operands stay in registers and a multiply-add counts as two operations. Returns
/// the best of several trials.
///
/// # Errors
/// Fails if this machine lacks the instruction set.
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

/// Measures the bytes per second, read plus written, of copying `bytes` bytes on
/// `threads` threads of rayon's current pool.
///
/// Copies by `memcpy` and by stores that bypass the cache. Returns the median of
/// several trials of the faster way.
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
    rate(|from, to| to.copy_from_slice(from)).max(rate(copy_bypassing_cache))
}

#[cfg(target_arch = "x86_64")]
fn copy_bypassing_cache(from: &[u64], to: &mut [u64]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    let skip = to.as_ptr().align_offset(16).min(to.len());
    to[..skip].copy_from_slice(&from[..skip]);
    let (from, to) = (&from[skip..to.len()], &mut to[skip..]);
    let whole = to.len() / 2;
    // SAFETY: SSE2 is part of x86-64; both slices have 2·whole elements, and `to` is aligned to 16 bytes.
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
fn copy_bypassing_cache(from: &[u64], to: &mut [u64]) {
    to.copy_from_slice(from);
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
