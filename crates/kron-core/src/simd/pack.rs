//! Factors brought into the order in which the kernels read them:
//! \[register, rank, lane\], so that a kernel walks memory straight ahead
//! whatever the stride of the factor, with zeros past the end.

/// A factor of `ranks` × `width` numbers in θ, times a constant.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    pub data: &'a [f32],
    pub ranks: usize,
    pub width: usize,
    /// Whether element (ρ, k) is `data[ρ·width + k]` (C, M) or `data[k·ranks + ρ]` (B).
    pub rank_major: bool,
    /// Multiplied in: dropout's 1/(1 − p), else 1.
    pub times: f32,
}

impl Factor<'_> {
    #[inline(always)]
    fn at(&self, rho: usize, k: usize) -> f32 {
        if rho >= self.ranks || k >= self.width {
            return 0.0;
        }
        let i = if self.rank_major { rho * self.width + k } else { k * self.ranks + rho };
        self.data[i] * self.times
    }

    /// One float32 a lane: `out[v][ρ][l]` = element (ρ, v·lanes + l). `lanes` may be those of
    /// several registers.
    #[inline(always)]
    pub(super) fn singles(&self, lanes: usize, out: &mut [f32]) {
        for (v, out) in out.chunks_exact_mut(self.ranks * lanes).enumerate() {
            let first = v * lanes;
            if first + lanes > self.width {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = self.at(i / lanes, first + i % lanes);
                }
            } else if self.rank_major {
                for (rho, out) in out.chunks_exact_mut(lanes).enumerate() {
                    let from = &self.data[rho * self.width + first..][..lanes];
                    out.iter_mut().zip(from).for_each(|(o, v)| *o = v * self.times);
                }
            } else {
                let from = &self.data[first * self.ranks..][..lanes * self.ranks];
                for (rho, out) in out.chunks_exact_mut(lanes).enumerate() {
                    for (l, out) in out.iter_mut().enumerate() {
                        *out = from[l * self.ranks + rho] * self.times;
                    }
                }
            }
        }
    }

    /// Pairs along k, for `down`: `out[v][ρ][l]` = elements (ρ, 2(v·lanes + l)) and the next.
    #[inline(always)]
    pub(super) fn pairs_of_columns(&self, lanes: usize, out: &mut [f32]) {
        for (v, out) in out.chunks_exact_mut(self.ranks * lanes).enumerate() {
            let first = 2 * v * lanes;
            for (rho, out) in out.chunks_exact_mut(lanes).enumerate() {
                if self.rank_major && first + 2 * lanes <= self.width {
                    let from = &self.data[rho * self.width + first..][..2 * lanes];
                    for (out, from) in out.iter_mut().zip(from.chunks_exact(2)) {
                        *out = pair(from[0] * self.times, from[1] * self.times);
                    }
                } else {
                    for (l, out) in out.iter_mut().enumerate() {
                        let k = first + 2 * l;
                        *out = pair(self.at(rho, k), self.at(rho, k + 1));
                    }
                }
            }
        }
    }

    /// Pairs along ρ, for `up`: `out[v][q][l]` = elements (2q, v·lanes + l) and (2q + 1, v·lanes + l).
    #[inline(always)]
    pub(super) fn pairs_of_ranks(&self, lanes: usize, out: &mut [f32]) {
        for (v, out) in out.chunks_exact_mut(self.ranks.div_ceil(2) * lanes).enumerate() {
            let first = v * lanes;
            for (q, out) in out.chunks_exact_mut(lanes).enumerate() {
                if self.rank_major && first + lanes <= self.width && 2 * q + 1 < self.ranks {
                    let low = &self.data[2 * q * self.width + first..][..lanes];
                    let high = &self.data[(2 * q + 1) * self.width + first..][..lanes];
                    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                        *out = pair(low * self.times, high * self.times);
                    }
                } else {
                    for (l, out) in out.iter_mut().enumerate() {
                        let k = first + l;
                        *out = pair(self.at(2 * q, k), self.at(2 * q + 1, k));
                    }
                }
            }
        }
    }

    /// The way back, for gradients: out\[element\] += times·packed\[v\]\[ρ\]\[l\].
    pub(super) fn add_singles(&self, lanes: usize, packed: &[f32], out: &mut [f32]) {
        let registers = self.width.div_ceil(lanes);
        for (v, packed) in packed.chunks_exact(self.ranks * lanes).take(registers).enumerate() {
            let first = v * lanes;
            let count = lanes.min(self.width - first);
            for (rho, packed) in packed.chunks_exact(lanes).enumerate() {
                if self.rank_major {
                    let out = &mut out[rho * self.width + first..][..count];
                    out.iter_mut().zip(packed).for_each(|(o, p)| *o += self.times * p);
                } else {
                    for (l, p) in packed[..count].iter().enumerate() {
                        out[(first + l) * self.ranks + rho] += self.times * p;
                    }
                }
            }
        }
    }
}

/// Which numbers a lane of `up` or `outer` takes: one, or two rounded to bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Singles,
    Pairs,
}

/// s·u for `up`: \[group, rank or pair of ranks, row of the group\]. `u` is \[a, n, ranks\];
/// rows are (n, a) in flat order.
#[inline(always)]
pub(super) fn groups(
    u: &[f32],
    (n, a, ranks): (usize, usize, usize),
    s: f32,
    group: usize,
    form: Form,
    out: &mut [f32],
) {
    let lanes = match form {
        Form::Singles => ranks,
        Form::Pairs => ranks.div_ceil(2),
    };
    let mut row = 0;
    for i in 0..n {
        for j in 0..a {
            let u = &u[(j * n + i) * ranks..][..ranks];
            let out = &mut out[row / group * group * lanes + row % group..];
            match form {
                Form::Singles => out.iter_mut().step_by(group).zip(u).for_each(|(out, u)| *out = s * u),
                Form::Pairs => {
                    for (out, u) in out.iter_mut().step_by(group).zip(u.chunks(2)) {
                        *out = pair(s * u[0], s * u.get(1).copied().unwrap_or(0.0));
                    }
                }
            }
            row += 1;
        }
    }
}

/// s·u for `outer`: \[row or pair of rows, rank\], rows in flat order. `u` is \[a, n, ranks\].
#[inline(always)]
pub(super) fn rows(u: &[f32], (n, a, ranks): (usize, usize, usize), s: f32, form: Form, out: &mut [f32]) {
    let row = |r: usize| &u[((r % a) * n + r / a) * ranks..][..ranks];
    match form {
        Form::Singles => {
            for (r, out) in out.chunks_exact_mut(ranks).enumerate() {
                out.iter_mut().zip(row(r)).for_each(|(out, u)| *out = s * u);
            }
        }
        Form::Pairs => {
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

/// Two numbers rounded to bf16, the first in the low half.
#[inline(always)]
fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(round(low) | round(high) << 16)
}

/// To nearest bf16, ties to even, NaN quiet, without a branch.
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
