//! Blocks of a float32 product on a unit that multiplies bf16, in the order of the caches.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

use super::amx_panel::{LINES, Line, PANEL, Panel, Parts, STEP, Source, Split};
use super::unit::Unit;
use crate::{Accum, Operands};

/// Largest number of columns of w that are packed at one time.
const COLUMNS: usize = 2048;
/// Largest part of the inner dimension that is packed at one time, after which y is stored.
const INNER: usize = 640;
/// Panels of x that a task packs and keeps in the second cache, at most 960 KiB: the more, the less often w is read.
const ROWS: usize = 8;
/// Panels of x of a task of few rows: with fewer, w would be read more often than x is packed.
const FEW_ROWS: usize = 4;
/// Panels of w that the second cache holds beside them.
const NEAR: usize = 4;
/// Tasks for each thread, at least: a thread that begins late has fewer.
const TASKS: usize = 2;
/// Least size of each dimension: below, packing and padding cost more than the unit saves.
const LEAST: usize = 32;

/// Computes y = x·w or y += x·w and returns true, or returns false: there is no unit, the sizes do not fit, a dimension
/// is small, or neither dimension of y is contiguous.
pub(crate) fn multiply(
    y: &mut ArrayViewMut2<f32>,
    accum: Accum,
    x: ArrayView2<f32>,
    w: ArrayView2<f32>,
    operands: Operands,
    parallel: bool,
) -> bool {
    Unit::new(operands).is_some_and(|unit| multiply_on(unit, y, accum, x, w, operands, parallel))
}

fn multiply_on(
    unit: Unit,
    y: &mut ArrayViewMut2<f32>,
    accum: Accum,
    x: ArrayView2<f32>,
    w: ArrayView2<f32>,
    operands: Operands,
    parallel: bool,
) -> bool {
    let ((m, k), n) = (x.dim(), w.ncols());
    if m.min(n).min(k) < LEAST || w.nrows() != k || y.dim() != (m, n) {
        return false;
    }
    if y.stride_of(Axis(1)) != 1 {
        let mut turned = y.view_mut().reversed_axes();
        return turned.stride_of(Axis(1)) == 1
            && multiply_on(unit, &mut turned, accum, w.t(), x.t(), operands, parallel);
    }
    let (rows, columns) = (Source::new(x, true, operands), Source::new(w.t(), false, operands));
    let y = Target { at: y.as_mut_ptr(), stride: y.stride_of(Axis(0)), rows: m, columns: n, of: PhantomData };
    let size = k.div_ceil(k.div_ceil(INNER)).next_multiple_of(STEP);
    let mut packed = Packed::new(n.min(COLUMNS), size);
    for inner in (0..k).step_by(size) {
        let (add, inner) = (accum == Accum::Add || inner > 0, inner..k.min(inner + size));
        for column in (0..n).step_by(COLUMNS) {
            packed.fill(columns, column..n.min(column + COLUMNS), inner.clone(), parallel);
            let whole = packed.panels.iter().all(|parts| *parts == Parts::One);
            let rows = rows.with_split(if whole { Split::Bits } else { Split::Nearest });
            let part = Part { rows, inner: inner.clone(), w: &packed, column, y, add };
            part.multiply(unit, parallel);
        }
    }
    true
}

/// Packed panels of one operand.
struct Packed {
    lines: Box<[MaybeUninit<Line>]>,
    /// Parts of each panel.
    panels: Vec<Parts>,
    steps: usize,
}

impl Packed {
    /// Allocates for so many rows or columns, and so much of the inner dimension.
    fn new(outer: usize, inner: usize) -> Self {
        let (panels, steps) = (outer.div_ceil(PANEL), inner.div_ceil(STEP));
        Self {
            lines: Box::new_uninit_slice(panels * steps * LINES),
            panels: Vec::with_capacity(panels),
            steps,
        }
    }

    /// Packs a part of the operand.
    fn fill(&mut self, of: Source, outer: Range<usize>, inner: Range<usize>, parallel: bool) {
        let panels = outer.len().div_ceil(PANEL);
        self.steps = inner.len().div_ceil(STEP);
        let size = self.steps * LINES;
        let pack = |(panel, lines): (usize, &mut [MaybeUninit<Line>])| {
            // SAFETY: AVX-512 BW was found with the unit.
            unsafe { of.pack(outer.start + panel * PANEL, inner.clone(), lines) }
        };
        let lines = &mut self.lines[..panels * size];
        match parallel {
            true => lines.par_chunks_exact_mut(size).enumerate().map(pack).collect_into_vec(&mut self.panels),
            false => {
                self.panels.clear();
                self.panels.extend(lines.chunks_exact_mut(size).enumerate().map(pack));
            }
        }
    }

    /// Returns a packed panel.
    fn panel(&self, panel: usize) -> Panel {
        let lines = self.lines[panel * self.steps * LINES..].as_ptr().cast();
        Panel { lines, parts: self.panels[panel] }
    }
}

/// The matrix y.
#[derive(Clone, Copy)]
struct Target<'a> {
    at: *mut f32,
    stride: isize,
    rows: usize,
    columns: usize,
    of: PhantomData<&'a mut f32>,
}

// SAFETY: the matrix is borrowed exclusively, and each task writes its own square of it.
unsafe impl Sync for Target<'_> {}

/// Part of the inner dimension and of the columns of w: what is packed of w, times x.
struct Part<'a> {
    rows: Source<'a>,
    inner: Range<usize>,
    w: &'a Packed,
    /// First column of y.
    column: usize,
    y: Target<'a>,
    add: bool,
}

impl Part<'_> {
    fn multiply(self, unit: Unit, parallel: bool) {
        let threads = if parallel { rayon::current_num_threads() } else { 0 };
        let panels = self.y.rows.div_ceil(PANEL);
        let rows = panels.div_ceil((TASKS * threads).max(1)).clamp(FEW_ROWS, ROWS);
        let groups = panels.div_ceil(rows);
        // Few rows leave threads idle, unless they share them and split the columns.
        let shares = (TASKS * threads).div_ceil(groups).clamp(1, self.w.panels.len());
        let share = self.w.panels.len().div_ceil(shares);
        let all: Vec<_> =
            (0..groups).flat_map(|i| (0..self.w.panels.len()).step_by(share).map(move |j| (i, j))).collect();
        let task = |&(group, first): &(usize, usize)| {
            let rows = group * rows * PANEL..self.y.rows.min((group + 1) * rows * PANEL);
            self.task(unit, rows, first..self.w.panels.len().min(first + share));
        };
        if parallel { all.par_iter().for_each(task) } else { all.iter().for_each(task) }
    }

    /// Packs rows of x, and multiplies them by some panels of w.
    fn task(&self, unit: Unit, rows: Range<usize>, panels: Range<usize>) {
        let mut x = Packed::new(rows.len(), self.inner.len());
        x.fill(self.rows, rows.clone(), self.inner.clone(), false);
        // SAFETY: the guard lives to the end of this function, which calls none that makes another.
        let unit = unsafe { unit.ready() };
        // Several squares side by side are in the same pages of y.
        let near = panels.clone().step_by(NEAR).map(|first| first..panels.end.min(first + NEAR));
        let squares =
            near.flat_map(|js| (0..x.panels.len()).flat_map(move |i| js.clone().map(move |j| (i, j))));
        for (i, j) in squares {
            let (a, b) = (x.panel(i), self.w.panel(j));
            let at = (rows.start + i * PANEL, self.column + j * PANEL);
            // SAFETY: both panels are packed, of a step or more as no dimension is zero, numbers of one part where they
            // were rounded to bf16, and no other task has this square.
            self.y.square(at, self.add, |y, stride, add| unsafe {
                unit.multiply(a, b, x.steps, y, stride, add);
            });
        }
    }
}

impl Target<'_> {
    /// Calls `multiply` on the square from a position on; one that y cuts off goes through a whole one.
    fn square(&self, (row, column): (usize, usize), add: bool, multiply: impl Fn(*mut f32, usize, bool)) {
        let (rows, columns) = (PANEL.min(self.rows - row), PANEL.min(self.columns - column));
        // SAFETY: the position exists in y.
        let at = unsafe { self.at.offset(row as isize * self.stride + column as isize) };
        if let (PANEL, PANEL, Ok(stride)) = (rows, columns, usize::try_from(self.stride)) {
            return multiply(at, stride, add);
        }
        let mut whole = [0.0; PANEL * PANEL];
        let line = |i: usize| {
            // SAFETY: the row exists in y.
            unsafe { at.offset(i as isize * self.stride) }
        };
        for i in 0..if add { rows } else { 0 } {
            // SAFETY: so many columns of the row exist.
            unsafe { line(i).copy_to_nonoverlapping(whole[i * PANEL..].as_mut_ptr(), columns) };
        }
        multiply(whole.as_mut_ptr(), PANEL, add);
        for i in 0..rows {
            // SAFETY: so many columns of the row exist, and no other task has them.
            unsafe { line(i).copy_from_nonoverlapping(whole[i * PANEL..].as_ptr(), columns) };
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, s};

    use super::super::amx::Amx;
    use super::*;

    /// Numbers of many magnitudes and both signs.
    fn matrix(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
        let mut state = seed;
        Array2::from_shape_simple_fn((rows, columns), || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let fraction = (state >> 33) as f32 / (1u64 << 30) as f32 - 1.0;
            fraction * f32::powi(2.0, (state >> 20) as i32 % 7 - 3)
        })
    }

    fn multiplied(x: &Array2<f32>, w: &Array2<f32>, operands: Operands) -> Array2<f32> {
        let mut y = Array2::zeros((x.nrows(), w.ncols()));
        assert!(multiply(&mut y.view_mut(), Accum::Replace, x.view(), w.view(), operands, false));
        y
    }

    /// Returns each unit of this processor with the operands that it takes.
    fn units() -> Vec<(Unit, Operands)> {
        let all = [Operands::Float32, Operands::Bf16].map(|operands| (Unit::all(operands), operands));
        let found = all.into_iter().flat_map(|(units, operands)| units.map(|unit| unit.zip(Some(operands))));
        let found: Vec<_> = found.flatten().collect();
        if found.is_empty() {
            eprintln!("skipped: no unit that multiplies bf16");
        }
        found
    }

    /// Cuts numbers to bf16, but in the rows or columns that fill no panel.
    fn shorten(mut panels: ArrayViewMut2<f32>) {
        let whole = panels.nrows() / PANEL * PANEL;
        panels.slice_mut(s![..whole, ..]).mapv_inplace(|v| f32::from_bits(v.to_bits() & 0xffff_0000));
    }

    /// Compares with float64 within the rounding of a float32 sum of as many products: of sizes that no panel
    /// divides, more than one block of each dimension, every order of every operand, and panels of bf16 numbers.
    #[test]
    fn results_are_as_accurate_as_float32() {
        let units = units();
        let sizes = [(32, 32, 32), (33, 70, 45), (64, 48, 1100), (1030, 33, 40), (40, 1100, 64)];
        for ((m, n, k), case) in sizes.into_iter().flat_map(|size| (0..32).map(move |case| (size, case))) {
            let operand = |bit: u32, rows, columns| match case >> bit & 1 {
                1 => matrix(columns, rows, bit.into()).reversed_axes(),
                _ => matrix(rows, columns, bit.into()),
            };
            let (mut x, mut w, before) = (operand(0, m, 2 * k), operand(1, k, n), operand(2, m, n));
            if case & 8 > 0 {
                shorten(x.view_mut());
            }
            if case & 16 > 0 {
                shorten(w.view_mut().reversed_axes());
            }
            let x = x.slice(s![.., k..]);
            for (accum, parallel, (unit, operands)) in
                units.iter().flat_map(|unit| [(Accum::Replace, true, *unit), (Accum::Add, false, *unit)])
            {
                let mut y = before.clone();
                assert!(multiply_on(unit, &mut y.view_mut(), accum, x, w.view(), operands, parallel));
                let wide = |v: &f32| match operands {
                    Operands::Float32 => f64::from(*v),
                    // Halves are rounded up.
                    Operands::Bf16 => f64::from(f32::from_bits((v.to_bits() + 0x8000) & 0xffff_0000)),
                };
                let exact = x.map(wide).dot(&w.map(wide));
                let size = x.map(|v| wide(v).abs()).dot(&w.map(|v| wide(v).abs()));
                let wide = |v: &f32| f64::from(*v);
                for (at, y) in y.indexed_iter() {
                    let old = if accum == Accum::Add { wide(&before[at]) } else { 0.0 };
                    let bound =
                        (1.1 * k as f64 + 8.0) * f64::from(f32::EPSILON) / 2.0 * (size[at] + old.abs());
                    let error = (wide(y) - exact[at] - old).abs();
                    assert!(error <= bound, "{unit:?}, {m} × {n} × {k}, {case}: {error:e} of {bound:e}");
                }
            }
        }
    }

    /// A mean error near that of one rounding shows that no product of parts is missing, also where an operand has
    /// one part.
    #[test]
    fn no_part_is_lost() {
        if Amx::new().is_none() {
            return eprintln!("skipped: no matrix unit");
        }
        for case in 0..4 {
            let (mut x, mut w) = (matrix(64, 32, 4), matrix(32, 64, 5));
            if case & 1 > 0 {
                shorten(x.view_mut());
            }
            if case & 2 > 0 {
                shorten(w.view_mut().reversed_axes());
            }
            let y = multiplied(&x, &w, Operands::Float32);
            let wide = |v: &f32| f64::from(*v);
            let (exact, size) =
                (x.map(wide).dot(&w.map(wide)), x.map(|v| wide(v).abs()).dot(&w.map(|v| wide(v).abs())));
            let errors = y.indexed_iter().map(|(at, y)| (wide(y) - exact[at]).abs() / size[at]);
            let mean = errors.sum::<f64>() / y.len() as f64;
            assert!(mean < f64::from(f32::EPSILON) / 2.0, "{case}: {mean:e}");
        }
    }

    /// Compares with whole numbers that bf16 holds, whose products are exact, and with ones that it rounds.
    #[test]
    fn operands_are_rounded_on_demand() {
        let whole =
            |rows, columns| Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 31 + j * 17) % 23) as f32);
        let (x, w) = (whole(33, 64), whole(64, 70));
        for (unit, operands) in units() {
            let on = |x: &Array2<f32>| {
                let mut y = Array2::zeros((x.nrows(), w.ncols()));
                let done =
                    multiply_on(unit, &mut y.view_mut(), Accum::Replace, x.view(), w.view(), operands, false);
                assert!(done);
                y
            };
            assert_eq!(on(&x), x.dot(&w), "{unit:?}, {operands:?}");
            // A change of less than half of bf16's last place.
            let near = x.mapv(|v| v * (1.0 + f32::powi(2.0, -10)));
            match operands {
                Operands::Float32 => assert_ne!(on(&near), x.dot(&w), "{unit:?}"),
                Operands::Bf16 => assert_eq!(on(&near), x.dot(&w), "{unit:?}"),
            }
        }
    }

    #[test]
    fn extreme_numbers_keep_their_meaning() {
        if Amx::new().is_none() {
            return eprintln!("skipped: no matrix unit");
        }
        let product = |value: f32, factor: f32| {
            let (mut x, mut w) = (Array2::zeros((32, 32)), Array2::zeros((32, 32)));
            (x[(3, 5)], w[(5, 7)]) = (value, factor);
            multiplied(&x, &w, Operands::Float32)[(3, 7)]
        };
        for value in [f32::MAX, f32::MIN, 1.0 + f32::EPSILON, -1.0 + f32::EPSILON, 1e-30, 0.0] {
            assert_eq!(product(value, 1.0), value);
            assert_eq!(product(1.0, value), value);
        }
        // Cut off instead of rounded, the third part of the one and the second of the other would be as large as can be,
        // and their product, which is left out, more than one rounding.
        let (x, w) = (1.0 + f32::powi(2.0, -7) - f32::EPSILON, 1.0 + f32::powi(2.0, -8) - f32::EPSILON);
        assert_eq!([product(x, w), product(w, x)], [x * w; 2]);
        for value in [f32::MIN_POSITIVE * 2.5, f32::MIN_POSITIVE / 3.0, -1e-40] {
            assert!((product(value, 1.0) - value).abs() < f32::MIN_POSITIVE, "{value:e}");
        }
        for value in [
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            f32::from_bits(0x7f80_0001),
            f32::from_bits(u32::MAX),
        ] {
            assert!(!product(value, 1.0).is_finite(), "{value}");
        }
        assert!(!product(f32::MAX, 2.0).is_finite());
    }

    #[test]
    fn what_another_product_has_to_do_is_left_alone() {
        let (x, w) = (matrix(64, 64, 1), matrix(64, 64, 2));
        let multiply = |y: &mut ArrayViewMut2<f32>, x, w| {
            [Operands::Float32, Operands::Bf16].iter().any(|of| multiply(y, Accum::Add, x, w, *of, false))
        };
        for (rows, columns, inner) in [(64, 64, 31), (31, 64, 64), (64, 31, 64)] {
            let mut y = Array2::from_elem((rows, columns), 7.0);
            let (x, w) = (x.slice(s![..rows, ..inner]), w.slice(s![..inner, ..columns]));
            assert!(!multiply(&mut y.view_mut(), x, w));
            assert!(y.iter().all(|y| *y == 7.0));
        }
        let mut apart = Array2::from_elem((128, 128), 7.0);
        assert!(!multiply(&mut apart.slice_mut(s![..;2, ..;2]), x.view(), w.view()));
        assert!(!multiply(&mut apart.view_mut(), x.view(), w.view()));
        assert!(apart.iter().all(|y| *y == 7.0));
    }
}
