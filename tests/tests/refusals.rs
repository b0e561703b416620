//! Illegal calls: each is refused with the numbers in the message, and nothing
//! is written; unusual but legal views are taken.

use kron_core::{
    Accum, Backend, Backward, Cpu, Forward, KronOp, KronShape, LayerDims, Merge, Pass, Scale, Split,
};
use kron_tests::guard::Guarded;
use kron_tests::inputs::Problem;
use kron_tests::{backends, call};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

const ROWS: usize = 6;

/// 15 × 14, θ = 15 + 12 + 28 = 55 numbers, T = 6 × 7 × 4 = 168.
fn op() -> KronOp {
    let shape =
        KronShape::kron(LayerDims { d_out: 15, d_in: 14 }, Split { a_out: 5, a_in: 7 }, 4).expect("legal");
    KronOp::new(shape, Scale::new(2.0).expect("finite"))
}

/// A matrix argument; `columns` lays it out by columns, so that its rows are not contiguous.
#[derive(Clone, Copy)]
struct Dims {
    rows: usize,
    cols: usize,
    columns: bool,
}

impl Dims {
    fn new(rows: usize, cols: usize) -> Self {
        Self { rows, cols, columns: false }
    }

    fn view(self, data: &[f32]) -> ArrayView2<'_, f32> {
        let dims = if self.columns { (self.cols, self.rows) } else { (self.rows, self.cols) };
        let view = ArrayView2::from_shape(dims, &data[..self.rows * self.cols]).expect("cut to size");
        if self.columns { view.reversed_axes() } else { view }
    }

    fn view_mut(self, data: &mut [f32]) -> ArrayViewMut2<'_, f32> {
        let dims = if self.columns { (self.cols, self.rows) } else { (self.rows, self.cols) };
        let view = ArrayViewMut2::from_shape(dims, &mut data[..self.rows * self.cols]).expect("cut to size");
        if self.columns { view.reversed_axes() } else { view }
    }
}

/// The sizes of every argument, right until a test makes one wrong.
#[derive(Clone, Copy)]
struct Sizes {
    theta: usize,
    x: Dims,
    y: Dims,
    dx: Dims,
    t: usize,
    grad: usize,
    workspace: usize,
    first_row: usize,
}

impl Sizes {
    fn of(cpu: &Cpu, pass: Pass) -> Self {
        let (op, s) = (op(), op().shape);
        Self {
            theta: s.params(),
            x: Dims::new(ROWS, s.d_in()),
            y: Dims::new(ROWS, s.d_out()),
            dx: Dims::new(ROWS, s.d_in()),
            t: op.t_len(ROWS),
            grad: s.params(),
            workspace: cpu.workspace_len(&op, pass, ROWS),
            first_row: 0,
        }
    }
}

/// Makes the call; an error's message is returned after every buffer was found untouched.
fn attempt(cpu: &Cpu, pass: Pass, sizes: Sizes) -> Result<(), String> {
    let op = op();
    let theta = vec![0.5; sizes.theta];
    let input = vec![0.25; 4 * ROWS * 15];
    let longest = input.len();
    let mut out = Guarded::of(&vec![1.0f32; longest]);
    let mut t = Guarded::of(&vec![1.0f32; sizes.t]);
    let mut grad = Guarded::of(&vec![1.0f32; sizes.grad]);
    let mut workspace = Guarded::of(&vec![1.0f32; sizes.workspace]);
    let before = (out.clone(), t.clone(), grad.clone(), workspace.clone());
    let result = match pass {
        Pass::Forward => {
            let (t, workspace) = (t.body_mut(), workspace.body_mut());
            let (x, y) = (sizes.x.view(&input), sizes.y.view_mut(out.body_mut()));
            let accum = Accum::Replace;
            cpu.forward(&op, Forward { theta: &theta, x, y, accum, t, workspace, dropout: None })
        }
        Pass::Backward { .. } => {
            let (grad, workspace) = (grad.body_mut(), workspace.body_mut());
            let (x, dy) = (sizes.x.view(&input), sizes.y.view(&input));
            let dx = Some((sizes.dx.view_mut(out.body_mut()), Accum::Replace));
            cpu.backward(
                &op,
                Backward { theta: &theta, x, t: t.body(), dy, dx, grad, workspace, dropout: None },
            )
        }
        Pass::Merge => {
            let w = sizes.x.view_mut(out.body_mut());
            let (first_row, accum, workspace) = (sizes.first_row, Accum::Replace, workspace.body_mut());
            cpu.merge(&op, Merge { theta: &theta, w, first_row, accum, workspace })
        }
    };
    let Err(error) = result else { return Ok(()) };
    let after = (&out, &t, &grad, &workspace);
    let pairs = [(&before.0, after.0), (&before.1, after.1), (&before.2, after.2), (&before.3, after.3)];
    for (before, after) in pairs {
        assert_eq!(before.bytes(), after.bytes(), "{pass:?} wrote although it refused: {error}");
    }
    Err(error.to_string())
}

/// A way to break a call, and what the message must say.
type Break = (fn(&mut Sizes), &'static [&'static str]);

fn all_refused(pass: Pass, breaks: &[Break]) {
    for cpu in backends() {
        let right = Sizes::of(&cpu, pass);
        assert_eq!(attempt(&cpu, pass, right), Ok(()), "{pass:?}");
        for (i, (wrong, says)) in breaks.iter().enumerate() {
            let mut sizes = right;
            wrong(&mut sizes);
            let message = attempt(&cpu, pass, sizes).expect_err(&format!("{pass:?}: break {i} was accepted"));
            let missing: Vec<_> = says.iter().filter(|part| !message.contains(**part)).collect();
            assert!(missing.is_empty(), "{pass:?}: {message:?} lacks {missing:?}");
            assert!(!message.contains('\n') && message.len() < 200, "not one sentence: {message}");
        }
    }
}

#[test]
fn forward_refuses_what_does_not_fit() {
    all_refused(
        Pass::Forward,
        &[
            (|s| s.theta -= 1, &["theta", "54", "55"]),
            (|s| s.theta += 1, &["theta", "56", "55"]),
            (|s| s.theta = 0, &["theta", "0 elements", "55"]),
            (|s| s.x.cols -= 1, &["x has", "6 × 13", "14"]),
            (|s| s.x.cols += 1, &["x has", "6 × 15", "14"]),
            (|s| s.x.columns = true, &["x has", "inner stride of 6"]),
            (|s| s.y.cols -= 1, &["y has", "6 × 14", "15"]),
            (|s| s.y.cols += 1, &["y has", "6 × 16", "15"]),
            (|s| s.y.rows -= 1, &["y has", "5 × 15", "6"]),
            (|s| s.y.rows += 1, &["y has", "7 × 15", "6"]),
            (|s| s.y.columns = true, &["y has", "inner stride of 6"]),
            (|s| s.t -= 1, &["t has", "167", "168"]),
            (|s| s.t = 0, &["t has", "0 elements", "168"]),
            (|s| s.workspace -= 1, &["workspace"]),
            (|s| s.workspace = 0, &["workspace", "0 elements"]),
        ],
    );
}

#[test]
fn backward_refuses_what_does_not_fit() {
    all_refused(
        Pass::Backward { dx: true },
        &[
            (|s| s.theta -= 1, &["theta", "54", "55"]),
            (|s| s.grad -= 1, &["grad", "54", "55"]),
            (|s| s.grad += 1, &["grad", "56", "55"]),
            (|s| s.x.cols += 1, &["x has", "6 × 15", "14"]),
            (|s| s.x.columns = true, &["x has", "inner stride of 6"]),
            (|s| s.y.cols += 1, &["dy has", "6 × 16", "15"]),
            (|s| s.y.rows -= 1, &["dy has", "5 × 15", "6"]),
            (|s| s.y.columns = true, &["dy has", "inner stride of 6"]),
            (|s| s.dx.cols -= 1, &["dx has", "6 × 13", "14"]),
            (|s| s.dx.rows += 1, &["dx has", "7 × 14", "6"]),
            (|s| s.dx.columns = true, &["dx has", "inner stride of 6"]),
            (|s| s.t -= 1, &["t has", "167", "168"]),
            (|s| s.workspace -= 1, &["workspace"]),
            (|s| s.workspace = 0, &["workspace", "0 elements"]),
        ],
    );
}

#[test]
fn merge_refuses_what_does_not_fit() {
    all_refused(
        Pass::Merge,
        &[
            (|s| s.theta -= 1, &["theta", "54", "55"]),
            (|s| s.x.cols += 1, &["w has", "6 × 15", "14"]),
            (|s| s.x.columns = true, &["w has", "inner stride of 6"]),
            (|s| s.first_row = 10, &["w has", "6 rows from row 10", "15"]),
            (|s| s.first_row = usize::MAX, &["w has", "6 rows from row", "15"]),
            (|s| s.workspace -= 1, &["workspace"]),
            (|s| s.workspace = 0, &["workspace", "0 elements"]),
        ],
    );
}

/// Rows in reverse, and one row that stands for all: unit inner stride is all that is asked.
#[test]
fn unusual_row_strides_are_taken() {
    let mut problem = Problem::<f32>::random(op(), ROWS, 3);
    for cpu in backends() {
        let (want, _) = call::forward(&cpu, &problem, None);
        let (y, _) = forward_view(&cpu, &problem, problem.x.slice(s![..;-1, ..]), true);
        assert_eq!(y, want, "rows in reverse on {:?}", cpu.isa());
    }
    let first = problem.x.row(0).to_owned();
    problem.x = first.broadcast((ROWS, 14)).expect("one row").to_owned();
    for cpu in backends() {
        let (want, want_t) = call::forward(&cpu, &problem, None);
        let (y, t) = forward_view(&cpu, &problem, first.broadcast((ROWS, 14)).expect("one row"), false);
        assert_eq!((y, t), (want, want_t), "one row for all on {:?}", cpu.isa());
    }
}

/// Forward of a view of X; `reverse` writes Y from its last row to its first.
fn forward_view(cpu: &Cpu, p: &Problem<f32>, x: ArrayView2<f32>, reverse: bool) -> (Array2<f32>, Vec<f32>) {
    let mut y = Array2::from_elem((ROWS, p.op.shape.d_out()), f32::NAN);
    let mut t = vec![f32::NAN; p.op.t_len(ROWS)];
    let mut workspace = vec![f32::NAN; cpu.workspace_len(&p.op, Pass::Forward, ROWS)];
    let view = if reverse { y.slice_mut(s![..;-1, ..]) } else { y.view_mut() };
    let call = Forward {
        theta: p.theta.as_slice(),
        x,
        y: view,
        accum: Accum::Replace,
        t: t.as_mut_slice(),
        workspace: workspace.as_mut_slice(),
        dropout: None,
    };
    cpu.forward(&p.op, call).expect("legal views");
    (y, t)
}
