//! Singular values by one-sided Jacobi rotations: short, accurate to the last
//! digits of small values, slow for large matrices.

use ndarray::{Array1, Array2, Axis};

/// W = U·diag(s)·V: s in descending order.
#[derive(Clone, Debug)]
pub struct Svd {
    /// m × k.
    pub u: Array2<f64>,
    /// k = min(m, n) values.
    pub s: Vec<f64>,
    /// k × n; a row of a value of 0 is 0.
    pub v: Array2<f64>,
}

/// Upper bound on sweeps; no matrix of doubles has been seen to need as many.
const SWEEPS: usize = 60;

/// Returns the multiply-adds of [`svd`] of an m × n matrix: those of about ten sweeps.
pub fn svd_work(m: u128, n: u128) -> u128 {
    let (short, long) = (m.min(n), m.max(n));
    40u128.saturating_mul(short * short).saturating_mul(long)
}

/// Returns the thin decomposition of W, m × n.
///
/// ```
/// use ndarray::array;
///
/// let s = kron_adapter::algebra::svd(&array![[3.0, 0.0], [4.0, 5.0]]).s;
/// assert!((s[0] - 45f64.sqrt()).abs() < 1e-14 && (s[1] - 5f64.sqrt()).abs() < 1e-14);
/// ```
pub fn svd(w: &Array2<f64>) -> Svd {
    if w.nrows() > w.ncols() {
        // Wᵀ = U·S·V gives W = Vᵀ·S·Uᵀ; here only V can hold rows of 0.
        let Svd { u, s, v } = wide(w.t().to_owned());
        return Svd { u: v.t().to_owned(), s, v: u.t().to_owned() };
    }
    wide(w.clone())
}

/// Returns the thin decomposition of B·C, m × k times k × n, without the product; its
/// size is the smallest of m, k and n.
pub fn svd_of_product(b: &Array2<f64>, c: &Array2<f64>) -> Svd {
    let Svd { u, s, v } = svd(b);
    let core = (&v * &Array1::from(s).insert_axis(Axis(1))).dot(c);
    let Svd { u: inner, s, v } = svd(&core);
    Svd { u: u.dot(&inner), s, v }
}

/// Returns a matrix with the singular values of B·C, m × k times k × n, whose sides are at most k.
/// Long rows are read once instead of once per sweep.
pub fn core(b: Array2<f64>, c: Array2<f64>) -> Array2<f64> {
    triangle(b.reversed_axes()).t().dot(&triangle(c))
}

/// Returns L of W = L·Q, m × m, where the rows of Q are orthonormal, by Householder's
/// reflections; W itself unless it is wider than high.
fn triangle(mut w: Array2<f64>) -> Array2<f64> {
    let (m, n) = w.dim();
    if m >= n {
        return w;
    }
    for p in 0..m {
        // This reflection clears row p to the right of its own column.
        let mut v = w.row(p).split_at(Axis(0), p).1.to_owned();
        let norm = v.dot(&v).sqrt();
        if norm == 0.0 {
            continue;
        }
        v[0] += norm.copysign(v[0]);
        let half = v.dot(&v) / 2.0;
        for q in p..m {
            let mut row = w.row_mut(q).split_at(Axis(0), p).1;
            let share = row.dot(&v) / half;
            row.scaled_add(-share, &v);
        }
    }
    w.view().split_at(Axis(1), m).0.to_owned()
}

/// Rotates pairs of rows until all are orthogonal; m ≤ n.
fn wide(mut w: Array2<f64>) -> Svd {
    let m = w.nrows();
    let mut rotations = Array2::<f64>::eye(m); // rotations·W₀ = w
    for _ in 0..SWEEPS {
        let mut done = true;
        for p in 0..m {
            for q in p + 1..m {
                if let Some((c, s)) = rotation(&w, p, q) {
                    rotate(&mut w, p, q, c, s);
                    rotate(&mut rotations, p, q, c, s);
                    done = false;
                }
            }
        }
        if done {
            break;
        }
    }
    sorted(w, rotations)
}

/// Returns cosine and sine of the rotation that makes rows p and q orthogonal; `None` if they are.
fn rotation(w: &Array2<f64>, p: usize, q: usize) -> Option<(f64, f64)> {
    let (x, y) = (w.row(p), w.row(q));
    let (xx, yy, xy) = (x.dot(&x), y.dot(&y), x.dot(&y));
    if xy.abs() <= f64::EPSILON * (xx * yy).sqrt() {
        return None;
    }
    let zeta = (yy - xx) / (2.0 * xy);
    let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    Some((c, c * t))
}

fn rotate(w: &mut Array2<f64>, p: usize, q: usize, c: f64, s: f64) {
    let (mut above, mut below) = w.view_mut().split_at(Axis(0), q); // p < q
    for (x, y) in above.row_mut(p).iter_mut().zip(&mut below.row_mut(0)) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

fn sorted(w: Array2<f64>, rotations: Array2<f64>) -> Svd {
    let norms: Vec<f64> = w.rows().into_iter().map(|row| row.dot(&row).sqrt()).collect();
    let mut order: Vec<usize> = (0..norms.len()).collect();
    order.sort_by(|&i, &j| norms[j].total_cmp(&norms[i]));
    let s: Vec<f64> = order.iter().map(|&i| norms[i]).collect();
    let mut v = w.select(Axis(0), &order);
    for (mut row, s) in v.rows_mut().into_iter().zip(&s) {
        row /= if *s > 0.0 { *s } else { 1.0 };
    }
    Svd { u: rotations.select(Axis(0), &order).t().to_owned(), s, v }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(m: usize, n: usize) -> Array2<f64> {
        Array2::from_shape_fn((m, n), |(i, j)| ((i * 37 + j * 101 + i * j * 7) % 53) as f64 / 53.0 - 0.4)
    }

    fn rebuilt(svd: &Svd) -> Array2<f64> {
        (&svd.u * &Array1::from(svd.s.clone())).dot(&svd.v)
    }

    fn max_abs(w: &Array2<f64>) -> f64 {
        w.iter().fold(0.0, |max, v| v.abs().max(max))
    }

    #[test]
    fn factors_give_the_matrix_back_and_are_orthogonal() {
        for (m, n) in [(1, 1), (1, 7), (9, 1), (6, 11), (13, 8), (10, 10)] {
            let w = matrix(m, n);
            let got = svd(&w);
            assert_eq!((got.u.dim(), got.v.dim()), ((m, m.min(n)), (m.min(n), n)));
            assert!(max_abs(&(rebuilt(&got) - &w)) < 1e-13, "{m} × {n}");
            assert!(got.s.is_sorted_by(|x, y| x >= y) && got.s[0] > 0.1);
            let square = got.v.dot(&got.v.t());
            for (i, s) in got.s.iter().enumerate().filter(|(_, s)| **s > 1e-12) {
                assert!((square[(i, i)] - 1.0).abs() < 1e-12, "{s}");
            }
        }
    }

    #[test]
    fn known_values_are_found() {
        // [[3, 0], [4, 5]] has singular values √45 and √5.
        let got = svd(&Array2::from_shape_vec((2, 2), vec![3.0, 0.0, 4.0, 5.0]).unwrap()).s;
        assert!((got[0] - 45f64.sqrt()).abs() < 1e-14 && (got[1] - 5f64.sqrt()).abs() < 1e-14, "{got:?}");
        assert_eq!(svd(&Array2::zeros((3, 4))).s, [0.0; 3]);
    }

    #[test]
    fn product_is_decomposed_without_being_built() {
        for (m, k, n) in [(9, 3, 7), (4, 8, 5), (12, 2, 3), (3, 3, 19), (1, 1, 5)] {
            let (b, c) = (matrix(m, k), matrix(k, n));
            let got = svd_of_product(&b, &c);
            assert!(max_abs(&(rebuilt(&got) - b.dot(&c))) < 1e-12, "{m} {k} {n}");
            let values = svd(&core(b.clone(), c.clone())).s;
            assert_eq!(values.len(), got.s.len(), "{m} {k} {n}");
            let difference = values.iter().zip(&got.s).map(|(x, y)| (x - y).abs());
            assert!(difference.fold(0.0, f64::max) < 1e-12 * got.s[0], "{values:?} {:?}", got.s);
        }
    }
}
