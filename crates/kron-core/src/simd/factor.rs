//! Packs factors into the order in which the kernels read them, \[register, rank, lane\].
//!
//! A kernel then reads memory sequentially for any stride of the factor. Lanes
//! past the end are zero.

use super::vector::{Mac, Simd};
use crate::Element;

/// Registers of one rank that are packed before the next rank. Ranks of C may be a
/// power of two apart, and their cache lines would then evict each other from L1.
const RUN: usize = 16;

/// Lanes of the widest instruction set.
const MAX_LANES: usize = 16;

/// Kernel that reads a packed factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PackFor {
    /// `down`: sums run along the factor's width.
    Down,
    /// `up`: sums run along its ranks.
    Up,
}

/// A factor of `ranks` × `width` elements of θ, times a constant.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a> {
    pub data: &'a [f32],
    pub ranks: usize,
    pub width: usize,
    /// True if element (ρ, k) is `data[ρ·width + k]` (C, M), false if it is `data[k·ranks + ρ]` (B).
    pub rank_major: bool,
    /// Factor of every element: 1/(1 − p) with dropout, otherwise 1.
    pub times: f32,
}

impl Factor<'_> {
    #[inline(always)]
    fn at(&self, rho: usize, k: usize) -> f32 {
        if rho >= self.ranks || k >= self.width {
            return 0.0;
        }
        self.data[if self.rank_major { rho * self.width + k } else { k * self.ranks + rho }]
    }

    /// Packs for `down`: \[register, ρ, lane\], where a lane is `PAIR` neighbouring columns.
    ///
    /// # Safety
    /// The CPU has the instruction set of `K`.
    #[inline(always)]
    pub(super) unsafe fn for_down<K: Mac<E>, E: Element>(&self, out: &mut [f32]) {
        let (lanes, size) = (K::S::LANES, self.ranks * K::S::LANES);
        let columns = lanes * K::PAIR;
        let registers = out.len() / size;
        for first in (0..registers).step_by(RUN) {
            let last = (first + RUN).min(registers);
            let mut rho = 0;
            while rho < self.ranks {
                if self.rank_major && last * columns <= self.width {
                    let from = &self.data[rho * self.width + first * columns..][..(last - first) * columns];
                    let out = &mut out[first * size + rho * lanes..][..(last - first - 1) * size + lanes];
                    // SAFETY: the same contract; the slices hold what is read and written.
                    unsafe {
                        for v in 0..last - first {
                            let from = from.as_ptr().add(v * columns);
                            let mut one = self.scaled::<K::S>(K::S::load(from));
                            if K::PAIR == 2 {
                                one = K::columns(one, self.scaled::<K::S>(K::S::load(from.add(lanes))));
                            }
                            K::S::store(out.as_mut_ptr().add(v * size), one);
                        }
                    }
                    rho += 1;
                    continue;
                }
                let together = self.together(rho, last * columns);
                for v in first..last {
                    let (k, out) = (v * columns, &mut out[v * size + rho * lanes..]);
                    // SAFETY: the same contract.
                    unsafe {
                        if together {
                            let mut four = self.four::<K::S>(rho, k);
                            if K::PAIR == 2 {
                                let high = self.four::<K::S>(rho, k + lanes);
                                for i in 0..4 {
                                    four[i] = K::columns(four[i], high[i]);
                                }
                            }
                            for i in 0..4 {
                                put::<K::S>(four[i], &mut out[i * lanes..]);
                            }
                        } else {
                            let mut one = self.one::<K::S>(rho, k);
                            if K::PAIR == 2 {
                                one = K::columns(one, self.one::<K::S>(rho, k + lanes));
                            }
                            put::<K::S>(one, out);
                        }
                    }
                }
                rho += if together { 4 } else { 1 };
            }
        }
    }

    /// Packs for `up`: \[panel, ρ, register of the panel, lane\], where a lane is `PAIR` neighbouring ranks of a column.
    ///
    /// # Safety
    /// The CPU has the instruction set of `K`.
    #[inline(always)]
    pub(super) unsafe fn for_up<K: Mac<E>, E: Element>(&self, panel: usize, out: &mut [f32]) {
        let size = self.ranks.div_ceil(K::PAIR) * panel;
        for v in 0..out.len() / size {
            let mut rho = 0;
            while rho < self.ranks {
                if self.rank_major && rho + K::PAIR <= self.ranks && (v + 1) * panel <= self.width {
                    let from =
                        &self.data[rho * self.width + v * panel..][..(K::PAIR - 1) * self.width + panel];
                    let out = &mut out[v * size + rho / K::PAIR * panel..][..panel];
                    // SAFETY: the same contract; the slices hold what is read and written.
                    unsafe {
                        for p in (0..panel).step_by(K::S::LANES) {
                            let from = from.as_ptr().add(p);
                            let mut one = self.scaled::<K::S>(K::S::load(from));
                            if K::PAIR == 2 {
                                one = K::ranks(one, self.scaled::<K::S>(K::S::load(from.add(self.width))));
                            }
                            K::S::store(out.as_mut_ptr().add(p), one);
                        }
                    }
                    rho += K::PAIR;
                    continue;
                }
                let together = self.together(rho, (v + 1) * panel);
                for p in (0..panel).step_by(K::S::LANES) {
                    let (k, out) = (v * panel + p, &mut out[v * size + rho / K::PAIR * panel + p..]);
                    // SAFETY: the same contract.
                    unsafe {
                        if together {
                            let four = self.four::<K::S>(rho, k);
                            if K::PAIR == 2 {
                                put::<K::S>(K::ranks(four[0], four[1]), out);
                                put::<K::S>(K::ranks(four[2], four[3]), &mut out[panel..]);
                            } else {
                                for i in 0..4 {
                                    put::<K::S>(four[i], &mut out[i * panel..]);
                                }
                            }
                        } else {
                            let mut one = self.one::<K::S>(rho, k);
                            if K::PAIR == 2 {
                                one = K::ranks(one, self.one::<K::S>(rho + 1, k));
                            }
                            put::<K::S>(one, out);
                        }
                    }
                }
                rho += if together { 4 } else { K::PAIR };
            }
        }
    }

    /// Returns true if four ranks from `rho` on are adjacent in memory, for all columns up to `end`.
    #[inline(always)]
    fn together(&self, rho: usize, end: usize) -> bool {
        !self.rank_major && rho + 4 <= self.ranks && end <= self.width
    }

    /// Loads columns k… of four adjacent ranks, one register per rank.
    #[inline(always)]
    unsafe fn four<S: Simd>(&self, rho: usize, k: usize) -> [S::V; 4] {
        let from = &self.data[k * self.ranks + rho..][..(S::LANES - 1) * self.ranks + 4];
        // SAFETY: the caller proves the instruction set; the slice holds what `load_transposed` reads.
        unsafe {
            let mut four = S::load_transposed(from.as_ptr(), self.ranks);
            for i in 0..4 {
                four[i] = self.scaled::<S>(four[i]);
            }
            four
        }
    }

    /// Loads columns k… of one rank; lanes past the width are zero.
    #[inline(always)]
    unsafe fn one<S: Simd>(&self, rho: usize, k: usize) -> S::V {
        // SAFETY: the caller proves the instruction set; both pointers are to LANES ≤ MAX_LANES values.
        unsafe {
            if self.rank_major && rho < self.ranks && k + S::LANES <= self.width {
                let from = &self.data[rho * self.width + k..][..S::LANES];
                return self.scaled::<S>(S::load(from.as_ptr()));
            }
            let mut lanes = [0.0; MAX_LANES];
            for l in 0..S::LANES {
                lanes[l] = self.at(rho, k + l);
            }
            self.scaled::<S>(S::load(lanes.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn scaled<S: Simd>(&self, v: S::V) -> S::V {
        // SAFETY: the caller proves the instruction set.
        unsafe { S::fma(S::zero(), v, S::splat(&raw const self.times)) }
    }

    /// Adds a packed gradient in the factor's order: out\[element\] += times·packed\[register\]\[ρ\]\[lane\].
    ///
    /// # Safety
    /// The CPU has the instruction set of `S`.
    #[inline(always)]
    pub(super) unsafe fn add_singles<S: Simd>(&self, packed: &[f32], out: &mut [f32]) {
        let (size, registers) = (self.ranks * S::LANES, self.width.div_ceil(S::LANES));
        for first in (0..registers).step_by(RUN) {
            let last = (first + RUN).min(registers);
            let mut rho = 0;
            while rho < self.ranks {
                if self.rank_major && last * S::LANES <= self.width {
                    let count = last - first;
                    let packed = &packed[first * size + rho * S::LANES..][..(count - 1) * size + S::LANES];
                    let out = &mut out[rho * self.width + first * S::LANES..][..count * S::LANES];
                    // SAFETY: the same contract; the slices hold what is read and written.
                    unsafe {
                        for v in 0..count {
                            let out = out.as_mut_ptr().add(v * S::LANES);
                            let sum = self.scaled::<S>(S::load(packed.as_ptr().add(v * size)));
                            S::store(out, S::add(S::load(out), sum));
                        }
                    }
                    rho += 1;
                    continue;
                }
                let together = self.together(rho, last * S::LANES);
                for v in first..last {
                    let packed = &packed[v * size + rho * S::LANES..];
                    // SAFETY: the same contract.
                    unsafe {
                        if together {
                            self.add_four::<S>(rho, v * S::LANES, packed, out);
                        } else {
                            self.add_one::<S>(rho, v * S::LANES, packed, out);
                        }
                    }
                }
                rho += if together { 4 } else { 1 };
            }
        }
    }

    #[inline(always)]
    unsafe fn add_four<S: Simd>(&self, rho: usize, k: usize, packed: &[f32], out: &mut [f32]) {
        let (packed, last) = (&packed[..4 * S::LANES], (S::LANES - 1) * self.ranks);
        let out = &mut out[k * self.ranks + rho..][..last + 4];
        // SAFETY: the caller proves the instruction set; the slices hold what is read and written.
        unsafe {
            let mut four = [S::zero(); 4];
            for i in 0..4 {
                four[i] = self.scaled::<S>(S::load(packed[i * S::LANES..].as_ptr()));
            }
            S::add_transposed(four, out.as_mut_ptr(), self.ranks);
        }
    }

    #[inline(always)]
    unsafe fn add_one<S: Simd>(&self, rho: usize, k: usize, packed: &[f32], out: &mut [f32]) {
        if self.rank_major && k + S::LANES <= self.width {
            let (packed, out) = (&packed[..S::LANES], &mut out[rho * self.width + k..][..S::LANES]);
            // SAFETY: the caller proves the instruction set; both slices have LANES elements.
            unsafe {
                let sum = S::add(S::load(out.as_ptr()), self.scaled::<S>(S::load(packed.as_ptr())));
                return S::store(out.as_mut_ptr(), sum);
            }
        }
        let (column, rank) = if self.rank_major { (1, self.width) } else { (self.ranks, 1) };
        for l in 0..S::LANES.min(self.width - k) {
            out[rho * rank + (k + l) * column] += self.times * packed[l];
        }
    }
}

/// Stores one register.
#[inline(always)]
unsafe fn put<S: Simd>(v: S::V, out: &mut [f32]) {
    // SAFETY: the caller proves the instruction set; the slice has LANES elements.
    unsafe { S::store(out[..S::LANES].as_mut_ptr(), v) }
}
