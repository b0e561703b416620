//! The float64 reference for a layer of any size, computed from the factors: ΔW
//! is not materialised, so that 2048 rows of a 14336-wide layer take a fraction
//! of a second. A test compares it with `kron_core::reference`, which materialises ΔW.

use kron_core::{Element, KronOp, Theta};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use crate::data::Set;
use crate::problem::LayerTask;

/// Number of rows of Y and dX, and for a frozen layer also of columns, that are checked.
/// θ's gradient is checked whole.
pub const SAMPLE: usize = 48;

/// Rows that one thread processes at a time.
const BLOCK: usize = 128;

/// Expected values and their positions in the engine's buffer.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Positions in the buffer.
    pub at: Vec<usize>,
    /// The value at each position.
    pub values: Vec<f64>,
}

/// The results of one problem's forward and backward on a set.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Some entries of Y.
    pub y: Expected,
    /// Some entries of dX.
    pub dx: Expected,
    /// \[dA | dB | dC\]; empty for the base layer.
    pub grad: Vec<f64>,
}

impl Reference {
    /// Computes the reference of a problem. Merging has the reference of its adapter:
    /// the merged weight is [`merged`].
    ///
    /// # Panics
    /// Panics on an adapter without θ and on a layer without a weight.
    pub fn new<E: Element>(
        problem: &LayerTask,
        theta: Option<&Theta>,
        weight: Option<&Array2<E>>,
        set: &Set<E>,
    ) -> Self {
        let weight = || weight.expect("a layer's weight");
        match (problem, problem.op()) {
            (LayerTask::Layer(op), _) => layer(op, theta.expect("an adapter's θ"), weight(), set),
            (_, Some(op)) => adapter(&op, theta.expect("an adapter's θ"), set),
            (_, None) => linear(weight(), set),
        }
    }
}

/// Returns at most [`SAMPLE`] indices below `len`, evenly spread from the first to the last.
pub fn spread(len: usize) -> Vec<usize> {
    let count = len.min(SAMPLE);
    let last = len.saturating_sub(1);
    (0..count).map(|i| if count == 1 { 0 } else { i * last / (count - 1) }).collect()
}

/// Computes an adapter's reference for the contents of `set`.
fn adapter<E: Element>(op: &KronOp, theta: &Theta, set: &Set<E>) -> Reference {
    let f = Factors::new(op, theta);
    let all: Vec<usize> = (0..set.rows()).collect();
    let grad = (all.par_chunks(BLOCK))
        .map(|rows| f.gradient(wide(set.x.view(), rows).view(), wide(set.dy.view(), rows).view()))
        .reduce(|| vec![0.0; op.shape.params()], |a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect());
    let rows = spread(set.rows());
    let (x, dy) = (wide(set.x.view(), &rows), wide(set.dy.view(), &rows));
    let y = wide(set.y.view(), &rows) + f.output(&f.u(&f.t(x.view())));
    let dx = wide(set.dx.view(), &rows) + f.input_gradient(&f.dt(&f.du(dy.view())));
    Reference { y: Expected::rows(&rows, y), dx: Expected::rows(&rows, dx), grad }
}

/// Computes some entries of the base layer's Y = X·Wᵀ and dX + dY·W.
fn linear<E: Element>(weight: &Array2<E>, set: &Set<E>) -> Reference {
    let (d_out, d_in) = weight.dim();
    let (rows, outs, ins) = (spread(set.rows()), spread(d_out), spread(d_in));
    let (x, dy) = (wide(set.x.view(), &rows), wide(set.dy.view(), &rows));
    let y = x.dot(&wide(weight.view(), &outs).t());
    let columns = weight.select(Axis(1), &ins).mapv(|v| f64::from(v.to_f32()));
    let dx = wide(set.dx.view(), &rows).select(Axis(1), &ins) + dy.dot(&columns);
    Reference {
        y: Expected::entries(&rows, &outs, d_out, y),
        dx: Expected::entries(&rows, &ins, d_in, dx),
        grad: Vec::new(),
    }
}

/// Computes some rows of a whole layer's Y = X·Wᵀ + adapter(X) and dX = dY·W + the adapter's.
fn layer<E: Element>(op: &KronOp, theta: &Theta, weight: &Array2<E>, set: &Set<E>) -> Reference {
    let mut empty = set.clone();
    empty.y.flat_mut().fill(E::from_f32(0.0));
    empty.dx.flat_mut().fill(E::from_f32(0.0));
    let (mut whole, base) = (adapter(op, theta, &empty), linear(weight, &empty));
    for (own, base) in [(&mut whole.y, base.y), (&mut whole.dx, base.dx)] {
        // An adapter's entries are whole rows, in order, and a base layer's are some of them.
        let value = |at: &usize| own.at.binary_search(at).map_or(f64::NAN, |i| own.values[i]);
        let values = base.at.iter().zip(&base.values).map(|(at, base)| base + value(at)).collect();
        *own = Expected { at: base.at, values };
    }
    whole
}

/// Computes some rows of W + ΔW.
pub fn merged<E: Element>(op: &KronOp, theta: &Theta, weight: &Array2<E>) -> Expected {
    let (s, f) = (&op.shape, Factors::new(op, theta));
    let rows = spread(s.d_out());
    let inner = f.b.dot(&f.c);
    let mut w = wide(weight.view(), &rows);
    for (&o, mut row) in rows.iter().zip(w.rows_mut()) {
        for (i, v) in row.iter_mut().enumerate() {
            *v += f.scale * f.a[(o / s.b_out(), i / s.c_in())] * inner[(o % s.b_out(), i % s.c_in())];
        }
    }
    Expected::rows(&rows, w)
}

impl Expected {
    fn rows(rows: &[usize], values: Array2<f64>) -> Self {
        let width = values.ncols();
        let at = rows.iter().flat_map(|r| r * width..(r + 1) * width).collect();
        Self { at, values: values.into_iter().collect() }
    }

    fn entries(rows: &[usize], cols: &[usize], width: usize, values: Array2<f64>) -> Self {
        let at = rows.iter().flat_map(|r| cols.iter().map(move |c| r * width + c)).collect();
        Self { at, values: values.into_iter().collect() }
    }
}

/// The factors in float64.
struct Factors {
    op: KronOp,
    scale: f64,
    a: Array2<f64>,
    b: Array2<f64>,
    c: Array2<f64>,
}

impl Factors {
    fn new(op: &KronOp, theta: &Theta) -> Self {
        let s = &op.shape;
        let m = |data: &[f32], rows, cols| {
            Array2::from_shape_fn((rows, cols), |(i, j)| f64::from(data[i * cols + j]))
        };
        Self {
            op: *op,
            scale: f64::from(op.scale.get()),
            a: m(theta.a(), s.a_out(), s.a_in()),
            b: m(theta.b(), s.b_out(), s.width()),
            c: m(theta.c(), s.width(), s.c_in()),
        }
    }

    /// T = X·Cᵀ, n·a_in × r.
    fn t(&self, x: ArrayView2<f64>) -> Array2<f64> {
        self.split(x, self.op.shape.a_in()).dot(&self.c.t())
    }

    /// U = A·T, n·a_out × r.
    fn u(&self, t: &Array2<f64>) -> Array2<f64> {
        per_token(self.a.view(), t)
    }

    /// s·U·Bᵀ, n × d_out.
    fn output(&self, u: &Array2<f64>) -> Array2<f64> {
        join(self.scale * u.dot(&self.b.t()), self.op.shape.a_out())
    }

    /// dU = s·dY·B, n·a_out × r.
    fn du(&self, dy: ArrayView2<f64>) -> Array2<f64> {
        self.scale * self.split(dy, self.op.shape.a_out()).dot(&self.b)
    }

    /// dT = Aᵀ·dU, n·a_in × r.
    fn dt(&self, du: &Array2<f64>) -> Array2<f64> {
        per_token(self.a.t(), du)
    }

    /// dT·C, n × d_in.
    fn input_gradient(&self, dt: &Array2<f64>) -> Array2<f64> {
        join(dt.dot(&self.c), self.op.shape.a_in())
    }

    /// \[dA | dB | dC\] of the given rows.
    fn gradient(&self, x: ArrayView2<f64>, dy: ArrayView2<f64>) -> Vec<f64> {
        let s = &self.op.shape;
        let (t, du) = (self.t(x), self.du(dy));
        let mut da = Array2::<f64>::zeros((s.a_out(), s.a_in()));
        let (du_rows, t_rows) =
            (du.axis_chunks_iter(Axis(0), s.a_out()), t.axis_chunks_iter(Axis(0), s.a_in()));
        du_rows.zip(t_rows).for_each(|(du, t)| da += &du.dot(&t.t()));
        let db = self.scale * self.split(dy, s.a_out()).t().dot(&self.u(&t));
        let dc = self.dt(&du).t().dot(&self.split(x, s.a_in()));
        let da = da.into_iter().take(s.a_len());
        da.chain(db).chain(dc).collect()
    }

    fn split<'a>(&self, m: ArrayView2<'a, f64>, parts: usize) -> ArrayView2<'a, f64> {
        let (n, d) = m.dim();
        m.into_shape_with_order((n * parts, d / parts)).expect("a part divides the width")
    }
}

/// Reshapes n·p × q to n × p·q.
fn join(m: Array2<f64>, p: usize) -> Array2<f64> {
    let (np, q) = m.dim();
    // A product with a transpose may come out column-major.
    let m = m.as_standard_layout().into_owned();
    m.into_shape_with_order((np / p, p * q)).expect("the same number of elements")
}

/// Multiplies each token's block of `of` by m.
fn per_token(m: ArrayView2<f64>, of: &Array2<f64>) -> Array2<f64> {
    let (p, q) = m.dim();
    let mut out = Array2::zeros((of.nrows() / q * p, of.ncols()));
    let blocks = out.axis_chunks_iter_mut(Axis(0), p).zip(of.axis_chunks_iter(Axis(0), q));
    blocks.for_each(|(mut out, of)| out.assign(&m.dot(&of)));
    out
}

fn wide<E: Element>(m: ArrayView2<E>, rows: &[usize]) -> Array2<f64> {
    Array2::from_shape_fn((rows.len(), m.ncols()), |(i, j)| f64::from(m[(rows[i], j)].to_f32()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kron_core::{KronShape, LayerDims, Scale, Split, reference};

    #[test]
    fn agrees_with_the_materialised_reference() {
        let kron =
            KronShape::kron(LayerDims { d_out: 77, d_in: 65 }, Split { a_out: 7, a_in: 5 }, 3).unwrap();
        let [lora, thin] =
            [4, 1].map(|rank| KronShape::lora(LayerDims { d_out: 41, d_in: 29 }, rank).unwrap());
        for (shape, rows) in [(kron, BLOCK + 9), (kron, 1), (lora, BLOCK + 9), (lora, 1), (thin, 5)] {
            let op = KronOp::new(shape, Scale::new(1.7).unwrap());
            let theta = Theta::random(shape, 3);
            let set = Set::<f32>::random(rows, LayerDims { d_out: shape.d_out(), d_in: shape.d_in() }, 0, 5);
            let expected = adapter(&op, &theta, &set);
            let f64s = |m: ArrayView2<f32>| m.mapv(f64::from);
            let y = f64s(set.y.view()) + reference::forward(&op, &theta, f64s(set.x.view()).view());
            let grads =
                reference::backward(&op, &theta, f64s(set.x.view()).view(), f64s(set.dy.view()).view());
            let dx = f64s(set.dx.view()) + grads.dx;
            let near = |got: &Expected, whole: &Array2<f64>| {
                let whole: Vec<f64> = whole.iter().copied().collect();
                got.at.iter().zip(&got.values).all(|(&i, v)| (v - whole[i]).abs() < 1e-12)
            };
            assert!(near(&expected.y, &y) && near(&expected.dx, &dx));
            assert_eq!(expected.grad.len(), grads.theta.len());
            for (a, b) in expected.grad.iter().zip(&grads.theta) {
                assert!((a - b).abs() < 1e-10 * b.abs().max(1.0), "{a} {b}");
            }
            let w = crate::data::uniform::<f32>(shape.d_out(), shape.d_in(), 1.0, 9);
            assert!(near(&merged(&op, &theta, &w), &(f64s(w.view()) + reference::delta_weight(&op, &theta))));
            let Reference { y, dx, grad } = layer(&op, &theta, &w, &set);
            let x = f64s(set.x.view());
            let output = reference::forward(&op, &theta, x.view());
            assert!(y.at.len() > 1 && near(&y, &(x.dot(&f64s(w.view()).t()) + output)));
            let dy = f64s(set.dy.view());
            let input = reference::backward(&op, &theta, x.view(), dy.view()).dx;
            assert!(dx.at.len() > 1 && near(&dx, &(dy.dot(&f64s(w.view())) + input)));
            assert_eq!(grad, expected.grad);
            let Reference { y, dx, .. } = linear(&w, &set);
            assert!(near(&y, &f64s(set.x.view()).dot(&f64s(w.view()).t())));
            assert!(near(&dx, &(f64s(set.dx.view()) + f64s(set.dy.view()).dot(&f64s(w.view())))));
        }
    }

    #[test]
    fn samples_reach_both_ends() {
        assert_eq!(spread(3), [0, 1, 2]);
        assert_eq!(spread(1), [0]);
        let many = spread(2048);
        assert_eq!((many.len(), many[0], many[SAMPLE - 1]), (SAMPLE, 0, 2047));
        assert!(many.windows(2).all(|w| w[0] < w[1]));
    }
}
