//! Singular values without vectors: reflections to a bidiagonal matrix, then bisection.
//!
//! ```text
//! P·W·Q = ┌ d₁ e₁       ┐      the eigenvalues of the symmetric tridiagonal matrix with
//!         │    d₂ e₂    │      zeros on its diagonal and d₁, e₁, d₂, e₂, … beside it are
//!         └       ⋱  ⋱  ┘      ±σ₁, ±σ₂, … (Golub and Kahan 1965)
//! ```
//!
//! A step costs four multiply-adds for each element that is left of W. A matrix of rank ρ is done after
//! ρ steps, however large it is: the rest is zero, or float32's rounding of a product.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2, Axis};

use super::svd::{svd, svd_work};

/// Largest shorter side of a matrix that is decomposed by rotations, which resolve small values better.
const ROTATED: usize = 32;
/// Multiply-adds of a step for each element of the matrix that is left.
const STEP: u128 = 4;
/// Multiply-adds before the first step, for each element.
const START: u128 = 4;
/// Multiply-adds of the bisection, over the square of the number of values: each of about 52 halvings divides once
/// for each of the two numbers of every step, and a division takes as long as four multiply-adds.
const BISECTION: u128 = 416;
/// Share of the sum of squares that is float32's rounding: the relative error of an element is at most 2⁻²⁴.
const ROUNDING: f64 = 1e-14;
/// Values that are bisected side by side.
const LANES: usize = 8;

/// Returns the most multiply-adds that [`values_within`] takes for an m × n matrix.
pub fn values_work(m: usize, n: usize) -> u128 {
    let (short, long) = (m.min(n) as u128, m.max(n) as u128);
    match short <= ROTATED as u128 {
        true => svd_work(short, long),
        // The sum of all steps: (m − p)·(n − p) for every p below the shorter side.
        false => {
            let (first, second) = (short * (short - 1) / 2, short * (short - 1) * (2 * short - 1) / 6);
            let steps = STEP * (short * short * long + second - (short + long) * first);
            START * short * long + steps + BISECTION * short * short
        }
    }
}

/// Returns the singular values of W in descending order, without those that are zero or rounding
/// where W is large; `None` if they take more than `work` multiply-adds.
pub fn values_within(w: Array2<f64>, mut work: u128) -> Option<Vec<f64>> {
    let (m, n) = w.dim();
    if m.min(n) <= ROTATED {
        return (values_work(m, n) <= work).then(|| svd(&w).s);
    }
    let beside = bidiagonal(w, &mut work)?;
    let count = beside.len() as u128 / 2;
    work.checked_sub(BISECTION * count * count)?;
    Some(bisected(&beside))
}

/// Returns d₁, e₁, d₂, e₂, …, and takes the multiply-adds from `work`; `None` if they are more.
fn bidiagonal(mut w: Array2<f64>, work: &mut u128) -> Option<Vec<f64>> {
    let (m, n) = w.dim();
    *work = work.checked_sub(START * m as u128 * n as u128)?;
    let all = square(w.view());
    let mut left = all;
    // After a reflection by any vector, no matrix has its first columns outside its rank but by accident.
    let mut any: Array1<f64> = (0..n).map(|j| 1.0 + (j * j % 101) as f64 / 101.0).collect();
    if let Some(half) = reflector(any.view_mut()).1 {
        reflect_rows(w.view_mut(), &any, half);
    }
    let mut beside = Vec::new();
    for p in 0..m.min(n) {
        // The difference has the rounding of all steps, so that a small one is computed anew.
        if left <= 1e3 * ROUNDING * all {
            left = square(corner(w.view_mut(), p, p).view());
        }
        if left <= ROUNDING * all {
            return Some(beside);
        }
        *work = work.checked_sub(STEP * (m - p) as u128 * (n - p) as u128)?;
        // Clears column p below its own row.
        let mut rest = corner(w.view_mut(), p, p);
        let mut v = rest.column(0).to_owned();
        let (d, half) = reflector(v.view_mut());
        if let Some(half) = half {
            reflect_columns(rest.view_mut(), &v, half);
        }
        // Clears row p to the right of the next column.
        let mut u = rest.row(0).split_at(Axis(0), 1).1.to_owned();
        let (e, half) = reflector(u.view_mut());
        if let Some(half) = half {
            reflect_rows(corner(rest, 1, 1), &u, half);
        }
        beside.extend([d, e]);
        left -= d * d + e * e;
    }
    Some(beside)
}

/// Returns the sum of squares.
fn square(w: ArrayView2<f64>) -> f64 {
    w.rows().into_iter().map(|row| row.dot(&row)).sum()
}

/// Returns the rows and columns from these on.
fn corner(w: ArrayViewMut2<f64>, row: usize, column: usize) -> ArrayViewMut2<f64> {
    w.split_at(Axis(0), row).1.split_at(Axis(1), column).1
}

/// Turns a vector into that of the reflection that maps it to a multiple of the first unit vector; returns
/// the multiple, and half the new vector's square, `None` for a vector of zeros.
fn reflector(mut v: ArrayViewMut1<f64>) -> (f64, Option<f64>) {
    let norm = v.dot(&v).sqrt();
    if norm == 0.0 {
        return (0.0, None);
    }
    let to = norm.copysign(v[0]);
    v[0] += to;
    (-to, Some(v.dot(&v) / 2.0))
}

/// Reflects every row by v.
fn reflect_rows(mut w: ArrayViewMut2<f64>, v: &Array1<f64>, half: f64) {
    for mut row in w.rows_mut() {
        let share = row.dot(v) / half;
        row.scaled_add(-share, v);
    }
}

/// Reflects every column by v, row by row.
fn reflect_columns(mut w: ArrayViewMut2<f64>, v: &Array1<f64>, half: f64) {
    let mut shares = Array1::<f64>::zeros(w.len_of(Axis(1)));
    for (row, v) in w.rows().into_iter().zip(v) {
        shares.scaled_add(v / half, &row);
    }
    for (mut row, v) in w.rows_mut().into_iter().zip(v) {
        row.scaled_add(-v, &shares);
    }
}

/// Returns the positive eigenvalues of the symmetric matrix with zeros on its diagonal and these values
/// beside it, in descending order.
fn bisected(beside: &[f64]) -> Vec<f64> {
    let size = beside.len() + 1;
    let squares: Vec<f64> = beside.iter().map(|v| v * v).collect();
    // Gershgorin: no eigenvalue is above the largest sum of a row.
    let pairs = beside.windows(2).map(|pair| pair[0].abs() + pair[1].abs());
    let top = pairs.chain(beside.iter().map(|v| v.abs())).fold(0.0, f64::max);
    let positive = size / 2;
    let mut values = Vec::with_capacity(positive);
    for first in (0..positive).step_by(LANES) {
        // Value number k is the least x with at most k eigenvalues above x.
        let (mut low, mut high) = ([0.0; LANES], [top; LANES]);
        while high.iter().zip(&low).any(|(high, low)| high - low > f64::EPSILON * top) {
            let middle: [f64; LANES] = std::array::from_fn(|i| low[i] + (high[i] - low[i]) / 2.0);
            if middle == low || middle == high {
                break;
            }
            let above = above(&squares, &middle);
            for i in 0..LANES {
                if above[i] <= first + i { high[i] = middle[i] } else { low[i] = middle[i] }
            }
        }
        values.extend(high.into_iter().take(positive - first));
    }
    values
}

/// Returns the numbers of eigenvalues above each x, by Sylvester's law of inertia.
fn above(squares: &[f64], x: &[f64; LANES]) -> [usize; LANES] {
    /// Least size of a pivot, so that none is zero.
    const LEAST: f64 = 1e-280;
    let mut pivots: [f64; LANES] = std::array::from_fn(|i| -x[i].max(LEAST));
    let mut counts = [0; LANES];
    for square in squares {
        for i in 0..LANES {
            let pivot = -x[i] - square / pivots[i];
            pivots[i] = if pivot.abs() < LEAST { -LEAST } else { pivot };
            counts[i] += usize::from(pivots[i] > 0.0);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(m: usize, n: usize) -> Array2<f64> {
        Array2::from_shape_fn((m, n), |(i, j)| ((i * 37 + j * 101 + i * j * 7) % 53) as f64 / 53.0 - 0.4)
    }

    fn compare(w: &Array2<f64>, within: f64) {
        let (got, want) = (values_within(w.clone(), u128::MAX).expect("enough work"), svd(w).s);
        assert!(got.len() <= want.len() && got.is_sorted_by(|x, y| x >= y), "{:?}", w.dim());
        for (i, want) in want.iter().enumerate() {
            let got = got.get(i).copied().unwrap_or(0.0);
            assert!((got - want).abs() <= within * want.max(1.0), "{:?}: {got} and {want}", w.dim());
        }
    }

    #[test]
    fn values_are_those_of_the_rotations() {
        for (m, n) in [(33, 33), (34, 71), (71, 34), (40, 33), (1, 60), (60, 1), (7, 5), (64, 65)] {
            compare(&matrix(m, n), 1e-12);
        }
        compare(&Array2::eye(37), 1e-14);
        compare(&Array2::zeros((40, 50)), 0.0);
        // Zeros in front, and blocks that do not meet.
        let mut blocks = Array2::zeros((45, 50));
        for ((i, j), v) in matrix(15, 18).indexed_iter() {
            blocks[(20 + i, 22 + j)] = *v;
        }
        for ((i, j), v) in matrix(5, 2).indexed_iter() {
            blocks[(40 + i, 1 + j)] = 8.0 * v;
        }
        compare(&blocks, 1e-12);
        compare(&(matrix(35, 36) * 1e-60), 1e-72);
        compare(&(matrix(35, 36) * 1e60), 1e-12);
    }

    #[test]
    fn a_low_rank_is_found_in_as_many_steps() {
        let (m, n, rank) = (300, 500, 3);
        let exact = matrix(m, rank).dot(&matrix(rank, n));
        let rounded = exact.mapv(|v| f64::from(v as f32));
        for w in [&exact, &rounded] {
            let want = super::super::svd_of_product(&matrix(m, rank), &matrix(rank, n)).s;
            let work = 4 * (m * n * (rank + 2)) as u128 + 416 * ((rank + 1) * (rank + 1)) as u128;
            let got = values_within(w.clone(), work).expect("a start and rank + 1 steps");
            for (i, got) in got.iter().enumerate() {
                let want = want.get(i).copied().unwrap_or(0.0);
                assert!((got - want).abs() < 1e-6 * got.max(1.0), "{got} and {want}");
            }
            assert!(got.len() >= rank, "{got:?}");
        }
        for (m, n) in [(60, 60), (60, 70), (70, 60)] {
            let steps: usize = (0..60).map(|p| 4 * (m - p) * (n - p)).sum();
            let work = steps + 4 * m * n + 416 * 60 * 60;
            assert_eq!(values_work(m, n), work as u128);
            assert!(values_within(matrix(m, n), work as u128 / 2).is_none());
            assert!(values_within(matrix(m, n), work as u128).is_some());
        }
        assert_eq!(values_within(matrix(5, 6), 10), None);
    }
}
