//! Compares the three kernels with their plain loops on every available
//! instruction set. All values are small integers: products and sums are exact,
//! so the result does not depend on the order and is rounded once to its dtype.
//!
//! Under Miri only the portable set is available. Every buffer ends where its grid
//! does, so that Miri finds a read past the end.

use half::{bf16, f16};

use super::factor::{Factor, PackFor};
use super::grid::{RowGrid, RowGridMut};
use super::isa::Isa;
use super::kernels::{Kernels, Products};
use crate::{Accum, Dtype, Element};

/// Tokens, blocks, columns and ranks that cover the tails of every register, pair
/// and panel, the ranks of every tile, second stretches, several runs of rows, and no rows.
const DIMS: &[(usize, usize, usize, usize)] = &[
    (1, 1, 1, 1),
    (1, 1, 7, 2),
    (2, 3, 8, 3),
    (5, 1, 9, 4),
    (3, 2, 16, 5),
    (1, 7, 31, 8),
    (7, 1, 33, 9),
    (2, 2, 63, 7),
    (4, 1, 70, 11),
    (1, 2, 40, 16),
    (3, 1, 85, 13),
    (1, 1, 130, 17),
    (1, 1, 1040, 4),
    (1, 1, 530, 8),
    (67, 1, 5, 2),
    (43, 3, 3, 1),
    (0, 2, 5, 3),
];

/// Elements between two blocks, and more between two tokens.
const GAPS: (usize, usize) = (3, 5);

#[derive(Clone, Copy, Debug)]
struct Dims {
    n: usize,
    a: usize,
    width: usize,
    ranks: usize,
}

impl Dims {
    fn rows(self) -> usize {
        self.n * self.a
    }

    /// Returns row (n, a), rank ρ of a \[a, n, ranks\].
    fn blocks_first(self, u: &[f32], row: usize, rho: usize) -> f32 {
        u[(row % self.a * self.n + row / self.a) * self.ranks + rho]
    }

    /// Returns a ranks × width matrix in the order of θ: as it is, or transposed.
    fn factor(self, m: &[f32], rank_major: bool) -> Vec<f32> {
        let at = |i: usize| if rank_major { i } else { i % self.ranks * self.width + i / self.ranks };
        (0..m.len()).map(|i| m[at(i)]).collect()
    }
}

#[test]
fn down_is_the_plain_loop() {
    each(Dtype::F32, down::<f32>);
    each(Dtype::F16, down::<f16>);
    each(Dtype::Bf16, down::<bf16>);
}

fn down<E: Element>(k: Kernels, d: Dims) {
    let (x, c) = (Rows::<E>::of(d, d.width, f32::NAN), integers(d.ranks * d.width, 2));
    let sums = sums(d.rows(), d.ranks, d.width, |row, p| x.get(row, p), |rho, p| c[rho * d.width + p]);
    for rank_major in [true, false] {
        let data = d.factor(&c, rank_major);
        let factor = Factor { data: &data, ranks: d.ranks, width: d.width, rank_major, times: 2.0 };
        let mut packed_scratch = vec![f32::NAN; k.packed_len(PackFor::Down, d.ranks, d.width)];
        let packed = k.pack(factor, PackFor::Down, &mut packed_scratch);
        for add in [false, true] {
            let mut t = Rows::<f32>::blocks_first(d, d.ranks, 0.5);
            let want = |i: usize, old| 2.0 * sums[i] + if add { old } else { 0.0 };
            t.after(want, |t| k.down(x.grid(), packed, t, add));
        }
    }
    if k.pair() == 1 {
        let mut t = Rows::<f32>::of(d, d.ranks, 0.5);
        t.after(|i, _| sums[i], |t| k.down(x.grid(), k.unpacked(PackFor::Down, &c, d.width), t, false));
    }
}

#[test]
fn up_is_the_plain_loop() {
    each(Dtype::F32, up::<f32>);
    each(Dtype::F16, up::<f16>);
    each(Dtype::Bf16, up::<bf16>);
}

fn up<E: Element>(k: Kernels, d: Dims) {
    // Odd, so that many sums lie halfway between two bf16 values.
    const S: f32 = 9.0;
    let (u, b) = (integers(d.rows() * d.ranks, 3), integers(d.ranks * d.width, 4));
    let mut packed_scratch = vec![f32::NAN; k.groups_len(d.rows(), d.ranks)];
    let groups = k.groups(&u, (d.n, d.a, d.ranks), S, &mut packed_scratch);
    let sums = sums(
        d.rows(),
        d.width,
        d.ranks,
        |row, rho| d.blocks_first(&u, row, rho),
        |p, rho| b[rho * d.width + p],
    );
    for rank_major in [true, false] {
        let data = d.factor(&b, rank_major);
        let factor = Factor { data: &data, ranks: d.ranks, width: d.width, rank_major, times: 1.0 };
        let mut packed_scratch = vec![f32::NAN; k.packed_len(PackFor::Up, d.ranks, d.width)];
        let packed = k.pack(factor, PackFor::Up, &mut packed_scratch);
        for accum in [Accum::Replace, Accum::Add] {
            let mut y = Rows::<E>::of(d, d.width, 0.5);
            let want = |i: usize, old| S * sums[i] + if accum == Accum::Add { old } else { 0.0 };
            y.after(want, |y| k.up(&[(groups, packed)], y, accum));
        }
    }
}

#[test]
fn outer_is_the_plain_loop() {
    each(Dtype::F32, outer::<f32>);
    each(Dtype::F16, outer::<f16>);
    each(Dtype::Bf16, outer::<bf16>);
}

fn outer<E: Element>(k: Kernels, d: Dims) {
    let (x, u) = (Rows::<E>::of(d, d.width, f32::NAN), integers(d.rows() * d.ranks, 5));
    let mut packed_scratch = vec![f32::NAN; d.rows() * d.ranks];
    let rows = k.rows(&u, (d.n, d.a, d.ranks), 2.0, &mut packed_scratch);
    let mut g = vec![0.0; d.width.next_multiple_of(k.lanes()) * d.ranks];
    for _ in 0..2 {
        k.outer(rows, x.grid(), &mut k.packed_gradient(d.ranks, &mut g));
    }
    let sums =
        sums(d.ranks, d.width, d.rows(), |rho, row| d.blocks_first(&u, row, rho), |p, row| x.get(row, p));
    let old = integers(d.ranks * d.width, 6);
    let want: Vec<f32> = old.iter().zip(&sums).map(|(old, sum)| old + 3.0 * 2.0 * 2.0 * sum).collect();
    for rank_major in [true, false] {
        let like = Factor { data: &[], ranks: d.ranks, width: d.width, rank_major, times: 3.0 };
        let mut out = d.factor(&old, rank_major);
        k.unpack_add(like, &g, &mut out);
        assert_eq!(out, d.factor(&want, rank_major), "{k:?} {d:?}");
    }
    let mut out = old.clone();
    if let Some(mut g) = k.rank_major_gradient(d.width, &mut out) {
        k.outer(rows, x.grid(), &mut g);
        let want: Vec<f32> = old.iter().zip(&sums).map(|(old, sum)| old + 2.0 * sum).collect();
        assert_eq!(out, want, "{k:?} {d:?}");
    }
}

/// Runs every case on every instruction set, in both kinds of products where they
/// differ; under Miri, which is slow, every third case of each dtype.
fn each(dtype: Dtype, test: fn(Kernels, Dims)) {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for products in [Products::Float32, Products::Native] {
            let k = Kernels::new(isa, dtype, products).expect("available");
            if products == Products::Native && k.pair() == 1 {
                continue; // native is float32
            }
            for (i, &(n, a, width, ranks)) in DIMS.iter().enumerate() {
                if !cfg!(miri) || Dtype::ALL[i % 3] == dtype {
                    test(k, Dims { n, a, width, ranks });
                }
            }
        }
    }
}

/// Rows of a grid with gaps between them.
struct Rows<E> {
    data: Vec<E>,
    dims: Dims,
    width: usize,
    strides: (usize, usize),
}

impl<E: Element> Rows<E> {
    /// Returns rows of integers, with `gap` between them.
    fn of(dims: Dims, width: usize, gap: f32) -> Self {
        let block = width + GAPS.0;
        Self::spread(dims, width, (dims.a * block + GAPS.1, block), gap)
    }

    /// Returns the same with the tokens of a block adjacent, as T is in backward.
    fn blocks_first(dims: Dims, width: usize, gap: f32) -> Self {
        let token = width + GAPS.0;
        Self::spread(dims, width, (token, dims.n * token + GAPS.1), gap)
    }

    fn spread(dims: Dims, width: usize, strides: (usize, usize), gap: f32) -> Self {
        let len = dims.n.saturating_sub(1) * strides.0 + (dims.a - 1) * strides.1 + width;
        let mut rows = Self { data: vec![E::from_f32(gap); len], dims, width, strides };
        let values = integers(dims.n * dims.a * width, 1);
        for (i, v) in values.into_iter().enumerate() {
            let at = rows.at(i / width, i % width);
            rows.data[at] = E::from_f32(v);
        }
        rows
    }

    fn at(&self, row: usize, k: usize) -> usize {
        row / self.dims.a * self.strides.0 + row % self.dims.a * self.strides.1 + k
    }

    fn get(&self, row: usize, k: usize) -> f32 {
        self.data[self.at(row, k)].to_f32()
    }

    fn grid(&self) -> RowGrid<'_, E> {
        RowGrid::new(&self.data, self.dims.n, self.dims.a, self.strides, self.width)
    }

    /// Panics unless `kernel` turns element i of all rows, `old`, into `want(i, old)` and leaves the gaps alone.
    fn after(&mut self, want: impl Fn(usize, f32) -> f32, kernel: impl FnOnce(&mut RowGridMut<E>)) {
        let mut expected = self.data.clone();
        for row in 0..self.dims.rows() {
            for k in 0..self.width {
                expected[self.at(row, k)] = E::from_f32(want(row * self.width + k, self.get(row, k)));
            }
        }
        let (n, a) = (self.dims.n, self.dims.a);
        kernel(&mut RowGridMut::new(&mut self.data, n, a, self.strides, self.width));
        for (i, (got, want)) in self.data.iter().zip(&expected).enumerate() {
            assert_eq!(
                got.to_f32(),
                want.to_f32(),
                "{:?}: element {i} of strides {:?}",
                self.dims,
                self.strides
            );
        }
    }
}

/// Returns the m × n sums Σ_k left(i, k)·right(j, k), by the plain loop.
fn sums(
    m: usize,
    n: usize,
    k: usize,
    left: impl Fn(usize, usize) -> f32,
    right: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let sum = |i| (0..k).map(|k| left(i / n, k) * right(i % n, k)).sum();
    (0..m * n).map(sum).collect()
}

/// Returns integers in −4…3 without a pattern that a wrong stride would repeat.
fn integers(len: usize, seed: u32) -> Vec<f32> {
    let hash = |i: u32| (i ^ seed << 20).wrapping_mul(0x9E37_79B9).rotate_left(13).wrapping_mul(0x85EB_CA6B);
    (0..len as u32).map(|i| (hash(i) >> 29) as f32 - 4.0).collect()
}
