//! Packs the scalars of `up` and `outer` into the order in which the kernels read them.

/// Contents of a lane of `up` or `outer`.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only x86-64 multiplies pairs
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneContents {
    /// One float32 value.
    Singles,
    /// Two values rounded to bf16.
    Pairs,
}

/// Packs s·u for `up`: \[group, rank or pair of ranks, row of the group\]. `u` is \[a, n, ranks\];
/// rows are (n, a) in flat order.
#[inline(always)]
pub(super) fn groups(
    u: &[f32],
    (n, a, ranks): (usize, usize, usize),
    s: f32,
    group: usize,
    contents: LaneContents,
    out: &mut [f32],
) {
    let lanes = match contents {
        LaneContents::Singles => ranks,
        LaneContents::Pairs => ranks.div_ceil(2),
    };
    let mut row = 0;
    for i in 0..n {
        for j in 0..a {
            let u = &u[(j * n + i) * ranks..][..ranks];
            let out = &mut out[row / group * group * lanes + row % group..];
            match contents {
                LaneContents::Singles => {
                    out.iter_mut().step_by(group).zip(u).for_each(|(out, u)| *out = s * u)
                }
                LaneContents::Pairs => {
                    for (out, u) in out.iter_mut().step_by(group).zip(u.chunks(2)) {
                        *out = pair(s * u[0], s * u.get(1).copied().unwrap_or(0.0));
                    }
                }
            }
            row += 1;
        }
    }
}

/// Packs s·u for `outer`: \[row or pair of rows, rank\], rows in flat order. `u` is \[a, n, ranks\].
#[inline(always)]
pub(super) fn rows(
    u: &[f32],
    (n, a, ranks): (usize, usize, usize),
    s: f32,
    contents: LaneContents,
    out: &mut [f32],
) {
    let row = |r: usize| &u[((r % a) * n + r / a) * ranks..][..ranks];
    match contents {
        LaneContents::Singles => {
            for (r, out) in out.chunks_exact_mut(ranks).enumerate() {
                out.iter_mut().zip(row(r)).for_each(|(out, u)| *out = s * u);
            }
        }
        LaneContents::Pairs => {
            for (q, out) in out.chunks_exact_mut(ranks).enumerate() {
                let low = row(2 * q);
                if 2 * q + 1 < n * a {
                    for ((out, low), high) in out.iter_mut().zip(low).zip(row(2 * q + 1)) {
                        *out = pair(s * low, s * high);
                    }
                } else {
                    out.iter_mut().zip(low).for_each(|(out, low)| *out = pair(s * low, 0.0));
                }
            }
        }
    }
}

/// Rounds two values to bf16 and joins them, the first in the low half.
#[inline(always)]
fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(round(low) | round(high) << 16)
}

/// Rounds to the nearest bf16, ties to even, NaN quiet, without a branch.
#[inline(always)]
fn round(v: f32) -> u32 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if v.is_nan() { bits | 0x0040_0000 } else { rounded }) >> 16
}

#[cfg(test)]
mod tests {
    use half::bf16;

    #[test]
    fn rounding_is_halfs() {
        let count = if cfg!(miri) { 2_000 } else { 200_000 };
        let odd = (0..count).map(|i: u32| f32::from_bits(i.wrapping_mul(0x9E37_79B9)));
        for v in odd.chain([0.0, -0.0, f32::INFINITY, f32::NAN, f32::MAX, f32::from_bits(1)]) {
            let want = bf16::from_f32(v);
            let got = bf16::from_bits(super::round(v) as u16);
            assert!(got.to_bits() == want.to_bits() || (v.is_nan() && got.is_nan()), "{v:e}");
        }
    }
}
