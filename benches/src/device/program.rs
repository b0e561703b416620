//! The computation of every engine on a device, as lists of steps: data that one executor
//! runs (`engines.rs`) and that the tests interpret without a device.

use std::collections::BTreeMap;

use kron_core::{Accum, Error, KronOp, LayerDims, Result};

use super::buffer::Buffer;
use super::product::{Operand, Product};
use crate::engines::Kind;
use crate::problem::LayerTask;

/// A call of kron-core's backend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Call {
    /// Y (+)= adapter(X), and T.
    Forward(Accum),
    /// dX (+)= …, gradient += ….
    Backward(Accum),
    /// Backward without dX: gradient += ….
    Gradient,
    /// ΔW, written or added to a buffer.
    Merge(Buffer, Accum),
}

/// One step of a program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// A product by cuBLASLt.
    Product(Product),
    /// A call of kron-core's backend, which the other engines replace by products.
    Ours(Call),
}

/// Size of a buffer that an engine keeps.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// True for float32, false for the dtype of the activations.
    pub float32: bool,
    /// Number of elements.
    pub len: usize,
}

/// An engine on one problem.
#[derive(Clone, Debug)]
pub struct Program {
    pub forward: Vec<Step>,
    pub backward: Vec<Step>,
    /// The length of each buffer.
    pub lens: BTreeMap<Buffer, usize>,
}

impl Program {
    /// Makes the program of an engine for `rows` rows.
    ///
    /// # Errors
    /// Fails for a problem of another engine.
    pub fn new(kind: Kind, problem: &LayerTask, rows: usize) -> Result<Self> {
        let (forward, backward) = match (kind, *problem) {
            (Kind::Linear, LayerTask::Linear(LayerDims { d_out, d_in })) => linear(d_out, d_in, rows),
            (Kind::LoraGemm | Kind::KronUnfused, LayerTask::Adapter(op)) => factored(&op, rows),
            (Kind::KronDense, LayerTask::Adapter(op)) => dense(&op, rows),
            (Kind::MergePerStep, LayerTask::Merge(op)) => merged(&op, rows),
            (Kind::LoraFused | Kind::KronFused, LayerTask::Adapter(_)) => {
                (vec![Step::Ours(Call::Forward(Accum::Add))], vec![Step::Ours(Call::Backward(Accum::Add))])
            }
            (Kind::KronFirst, LayerTask::Layer(op)) => first(&op, rows),
            _ => return Err(Error::Unsupported(format!("{} does not compute {problem:?}", kind.name()))),
        };
        let lens = lens(problem, rows, forward.iter().chain(&backward));
        Ok(Self { forward, backward, lens })
    }

    /// Returns the length of a buffer; 0 if the program does not use it.
    pub fn len(&self, buffer: Buffer) -> usize {
        self.lens.get(&buffer).copied().unwrap_or(0)
    }

    /// Lists T and the buffers kept between calls.
    pub fn scratch(&self) -> impl Iterator<Item = Scratch> {
        let kept = self.lens.iter().filter(|(b, _)| !b.is_given());
        kept.map(|(b, len)| Scratch { float32: b.is_float(), len: *len })
    }
}

/// Returns the length of every buffer that the steps use. If the shape does not fix it, it is the
/// largest extent that a step accesses.
fn lens<'a>(problem: &LayerTask, n: usize, steps: impl Iterator<Item = &'a Step>) -> BTreeMap<Buffer, usize> {
    use Buffer::{Delta, Dx, Dy, Grad, T, Theta, W, X, Y};
    let LayerDims { d_out, d_in } = problem.layer();
    let theta = problem.shape().map_or([0; 3], |s| [s.a_len(), s.b_len(), s.c_len()]);
    let fixed = |buffer| match buffer {
        X | Dx => Some(n * d_in),
        Y | Dy => Some(n * d_out),
        T => problem.op().map(|op| op.t_len(n)),
        W | Delta | Buffer::DDelta => Some(d_out * d_in),
        Theta | Grad => Some(theta.iter().sum()),
        Buffer::A | Buffer::DA => Some(theta[0]),
        Buffer::B | Buffer::DB => Some(theta[1]),
        Buffer::C | Buffer::DC => Some(theta[2]),
        _ => None,
    };
    let mut lens = BTreeMap::from([X, Y, Dy, Dx].map(|b| (b, fixed(b).unwrap_or(0))));
    for step in steps {
        let used = match step {
            Step::Product(p) => p.reach().to_vec(),
            Step::Ours(Call::Merge(into, _)) => vec![(*into, 0), (Theta, 0)],
            Step::Ours(_) => vec![(Theta, 0), (Grad, 0), (T, 0)],
        };
        for (buffer, reach) in used {
            let len = lens.entry(buffer).or_insert(0);
            *len = fixed(buffer).unwrap_or(reach.max(*len));
        }
    }
    lens
}

/// Y = X·Wᵀ; dX += dY·W.
fn linear(d_out: usize, d_in: usize, n: usize) -> (Vec<Step>, Vec<Step>) {
    let (x, y) = (Operand::new(Buffer::X, d_in), Operand::new(Buffer::Y, d_out));
    let (dx, dy) = (Operand::new(Buffer::Dx, d_in), Operand::new(Buffer::Dy, d_out));
    let w = Operand::new(Buffer::W, d_in);
    let forward = Product::new((n, d_out, d_in), x, w.t(), y);
    let backward = Product::new((n, d_in, d_out), dy, w, dx).added();
    (vec![Step::Product(forward)], vec![Step::Product(backward)])
}

/// `kron-first`: Y = adapter(X), Y += X·Wᵀ; dX = the adapter's, dX += dY·W.
fn first(op: &KronOp, n: usize) -> (Vec<Step>, Vec<Step>) {
    let (product, backward) = linear(op.shape.d_out(), op.shape.d_in(), n);
    let added = |step| match step {
        Step::Product(p) => Step::Product(p.added()),
        ours => ours,
    };
    let after = |call, list: Vec<Step>| std::iter::once(Step::Ours(call)).chain(list.into_iter().map(added));
    (
        after(Call::Forward(Accum::Replace), product).collect(),
        after(Call::Backward(Accum::Replace), backward).collect(),
    )
}

/// `lora-gemm` and `kron-unfused`: T and U have the tokens in the middle, so that every
/// product is one call, batched over the rows or the columns of A, and nothing is copied.
///
/// ```text
/// forward    T_j = X_j·Cᵀ        U = A·T                Y_i += s·U_i·Bᵀ
/// backward   dU_i = s·dY_i·B     dB += s·Σ dY_iᵀ·U_i    dA += dU·Tᵀ        dT = Aᵀ·dU
///            dC += Σ dT_jᵀ·X_j   dX_j += dT_j·C
/// ```
/// LoRA has no A: U = T and dT = dU.
fn factored(op: &KronOp, n: usize) -> (Vec<Step>, Vec<Step>) {
    let (s, scale) = (&op.shape, op.scale.get());
    let (a_out, a_in, b_out, c_in, r) = (s.a_out(), s.a_in(), s.b_out(), s.c_in(), s.width());
    let outer = s.a_len() > 0;
    let x = Operand::new(Buffer::X, s.d_in()).step(c_in);
    let y = Operand::new(Buffer::Y, s.d_out()).step(b_out);
    let dy = Operand { buffer: Buffer::Dy, ..y };
    let dx = Operand { buffer: Buffer::Dx, ..x };
    let [a, b, c] = [(Buffer::A, a_in), (Buffer::B, r), (Buffer::C, c_in)].map(|(f, w)| Operand::new(f, w));
    // T, U and their gradients have one n × r matrix for each column or row of A. `mid` is a batch of
    // these matrices, `flat` all of them as one matrix with a row each.
    let mid = |buffer| Operand::new(buffer, r).step(n * r);
    let flat = |buffer| Operand::new(buffer, n * r);
    let (t, du) = (Buffer::TMid, Buffer::DuMid);
    let (u, dt) = if outer { (Buffer::UMid, Buffer::DtMid) } else { (t, du) };

    let mut forward = vec![Product::new((n, r, c_in), x, c.t(), mid(t)).batch(a_in)];
    if outer {
        forward.push(Product::new((a_out, n * r, a_in), a, flat(t), flat(u)));
    }
    forward.push(Product::new((n, b_out, r), mid(u), b.t(), y).times(scale).added().batch(a_out));

    let mut backward = vec![Product::new((n, r, b_out), dy, b, mid(du)).times(scale).batch(a_out)];
    backward.extend(summed((b_out, r, n), scale, dy.t(), mid(u), Buffer::DB, a_out));
    if outer {
        let da = Operand::new(Buffer::DA, a_in);
        backward.push(Product::new((a_out, a_in, n * r), flat(du), flat(t).t(), da).added());
        backward.push(Product::new((a_in, n * r, a_out), a.t(), flat(du), flat(dt)));
    }
    backward.extend(summed((r, c_in, n), 1.0, mid(dt).t(), x, Buffer::DC, a_in));
    backward.push(Product::new((n, c_in, r), mid(dt), c, dx).added().batch(a_in));
    (products(forward), products(backward))
}

/// `into` += alpha·Σ A_i·B_i over a batch: the products are stored as parts, then one more product adds them.
fn summed(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    a: Operand,
    b: Operand,
    into: Buffer,
    batch: usize,
) -> Vec<Product> {
    let product = |c| Product::new((m, n, k), a, b, c).times(alpha);
    if batch == 1 {
        return vec![product(Operand::new(into, n)).added()];
    }
    let (ones, parts) = (Operand::new(Buffer::Ones, batch), Operand::new(Buffer::Parts, m * n));
    let sum = Product::new((1, m * n, batch), ones, parts, Operand::new(into, m * n)).added();
    vec![product(Operand::new(Buffer::Parts, n).step(m * n)).batch(batch), sum]
}

/// `kron-dense`: ΔW by our merge, kept for backward; block (i, j) of G is b_out × c_in.
///
/// ```text
/// forward    ΔW = s·A ⊗ (B·C)      Y += X·ΔWᵀ
/// backward   dX += dY·ΔW           G = dYᵀ·X              M = B·C
///            dA_ij += s·⟨G_ij, M⟩   D = s·Σ A_ij·G_ij      dB += D·Cᵀ      dC += Bᵀ·D
/// ```
fn dense(op: &KronOp, n: usize) -> (Vec<Step>, Vec<Step>) {
    let (s, scale) = (&op.shape, op.scale.get());
    let (a_out, a_in, b_out, c_in, r) = (s.a_out(), s.a_in(), s.b_out(), s.c_in(), s.width());
    let (d_out, d_in) = (s.d_out(), s.d_in());
    let [x, dx] = [Buffer::X, Buffer::Dx].map(|b| Operand::new(b, d_in));
    let [y, dy] = [Buffer::Y, Buffer::Dy].map(|b| Operand::new(b, d_out));
    let [delta, g] = [Buffer::Delta, Buffer::DDelta].map(|b| Operand::new(b, d_in));
    let [b, db] = [Buffer::B, Buffer::DB].map(|b| Operand::new(b, r));
    let [c, dc, inner, d] =
        [Buffer::C, Buffer::DC, Buffer::Inner, Buffer::DInner].map(|b| Operand::new(b, c_in));

    let forward = vec![
        Step::Ours(Call::Merge(Buffer::Delta, Accum::Replace)),
        Step::Product(Product::new((n, d_out, d_in), x, delta.t(), y).added()),
    ];
    let mut backward = vec![
        Product::new((n, d_in, d_out), dy, delta, dx).added(),
        Product::new((d_out, d_in, n), dy.t(), x, g),
        Product::new((b_out, c_in, r), b, c, inner),
    ];
    // A batch is the rows p of a block: row p of the blocks (·, j) is a matrix of a_out × c_in.
    let rows_of = |j: usize| Operand::new(Buffer::DDelta, b_out * d_in).at(j * c_in).step(d_in);
    let parts = Operand::new(Buffer::Parts, a_in).step(a_out * a_in);
    for j in 0..a_in {
        let part = Product::new((a_out, 1, c_in), rows_of(j), inner.t().step(c_in), parts.at(j));
        backward.push(part.batch(b_out));
    }
    let (ones, parts) = (Operand::new(Buffer::Ones, b_out), Operand::new(Buffer::Parts, a_out * a_in));
    let da = Operand::new(Buffer::DA, a_out * a_in);
    backward.push(Product::new((1, a_out * a_in, b_out), ones, parts, da).times(scale).added());
    for j in 0..a_in {
        let a = Operand::new(Buffer::A, a_in).at(j).t();
        let sum = Product::new((1, c_in, a_out), a, rows_of(j), d.step(c_in)).times(scale).batch(b_out);
        backward.push(Product { add: j > 0, ..sum });
    }
    backward.push(Product::new((b_out, r, c_in), d, c.t(), db).added());
    backward.push(Product::new((r, c_in, b_out), b.t(), d, dc).added());
    (forward, products(backward))
}

/// `merge-per-step`: W += ΔW by our merge, so that the base product does the rest. Backward
/// computes θ's gradient, from T = X·Cᵀ that it has to compute itself.
fn merged(op: &KronOp, n: usize) -> (Vec<Step>, Vec<Step>) {
    let s = &op.shape;
    let (x, c) = (Operand::new(Buffer::X, s.c_in()), Operand::new(Buffer::C, s.c_in()));
    let t = Product::new((n * s.a_in(), s.width(), s.c_in()), x, c.t(), Operand::new(Buffer::T, s.width()));
    let forward = vec![Step::Ours(Call::Merge(Buffer::W, Accum::Add))];
    (forward, vec![Step::Product(t), Step::Ours(Call::Gradient)])
}

fn products(list: Vec<Product>) -> Vec<Step> {
    list.into_iter().map(Step::Product).collect()
}
