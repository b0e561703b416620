//! Calls check their arguments; and cases beyond the suite's full calls.

mod common;

use common::{Case, Data, Matrix, Sizes, case_by_name, close, random};
use half::bf16;
use kron_core::{Accum, Backend, Backward, Forward, Merge, Pass, Result};
use kron_kernels::{self as kk, Cuda, DeviceSlice, DeviceSliceMut, Emulated};

/// The paper's shape in small, on tensor cores.
fn paper() -> Case {
    case_by_name("rank 8, the paper's shape in small")
}

fn odd() -> Case {
    case_by_name("odd everything")
}

fn forward(data: &mut Data<bf16>, rows: usize, t_len: usize, scratch: usize) -> Result<()> {
    let mut workspace = vec![0.0; scratch];
    let call = Forward {
        theta: DeviceSlice::host(data.theta.as_slice()),
        x: data.x.rows(),
        y: kk::RowsMut { rows, ..data.y.rows_mut() },
        accum: data.case.accum(),
        t: DeviceSliceMut::host(&mut data.t[..t_len]),
        workspace: DeviceSliceMut::host(&mut workspace),
        dropout: None,
    };
    Cuda::with(Emulated::new()).forward(&data.case.op(), call)
}

#[test]
fn buffers_are_refused_with_the_numbers() {
    let mut data = Data::<bf16>::new(Case {
        sizes: Sizes { a_out: 4, a_in: 2, b_out: 168, c_in: 328, rank: 8 },
        rows: 30,
        ..paper()
    });
    let t = data.t.len();
    let before = data.y.bits();
    let refused = |e: Result<()>| e.expect_err("refused").to_string();
    let error = refused(forward(&mut data, 29, t, 1 << 16));
    assert_eq!(error, "y has 29 rows, but x has 30");
    let error = refused(forward(&mut data, 30, t - 1, 1 << 16));
    assert_eq!(error, "t has 479 elements, but this call needs 480");
    let error = refused(forward(&mut data, 30, t, 3));
    assert!(error.starts_with("workspace has 3 elements, but this call needs "), "{error}");
    assert_eq!(before, data.y.bits(), "a refused call wrote to y");
    forward(&mut data, 30, t, 1 << 16).expect("now it fits");
    assert_ne!(before, data.y.bits());
}

#[test]
fn replace_never_reads_the_old_contents() {
    for case in [paper(), odd()] {
        let case = Case { accumulate: false, ..case };
        let mut data = Data::<bf16>::new(case);
        let clean = data.clone().run(&Emulated::new()).expect("runs").bits();
        let nan = |m: &Matrix<bf16>| Matrix::new(m.rows, m.cols, case.pad, &vec![f32::NAN; m.rows * m.cols]);
        (data.y, data.dx, data.w) = (nan(&data.y), nan(&data.dx), nan(&data.w));
        assert!(clean == data.run(&Emulated::new()).expect("runs").bits(), "{case:?}");
    }
}

#[test]
fn without_dx_the_gradient_has_the_same_bits() {
    let others = ["rank 8, replaced, dropout", "small m, many blocks of each"].map(case_by_name);
    for case in [odd()].into_iter().chain(others) {
        let mut data = Data::<bf16>::new(case);
        let whole = data.clone().run(&Emulated::new()).expect("runs");
        let (op, cuda) = (case.op(), Cuda::with(Emulated::new()));
        let len = cuda.workspace_len(&op, Pass::Backward { dx: false }, case.rows);
        let mut workspace = vec![f32::NAN; len];
        let call = Backward {
            theta: DeviceSlice::host(data.theta.as_slice()),
            x: data.x.rows(),
            t: DeviceSlice::host(&whole.t),
            dy: data.dy.rows(),
            dx: None,
            grad: DeviceSliceMut::host(&mut data.grad),
            workspace: DeviceSliceMut::host(&mut workspace),
            dropout: case.key(),
        };
        cuda.backward(&op, call).expect("runs");
        assert_eq!(data.grad, whole.grad, "{case:?}");
    }
}

fn merge(data: &Data<f32>, w: kk::RowsMut<'_, f32>, first_row: usize) -> Result<()> {
    let (theta, workspace) = (DeviceSlice::host(data.theta.as_slice()), DeviceSliceMut::host(&mut []));
    let call = Merge { theta, w, first_row, accum: Accum::Add, workspace };
    Cuda::with(Emulated::new()).merge(&data.case.op(), call)
}

#[test]
fn merge_takes_any_band_of_rows() {
    let case = odd();
    let data = Data::<f32>::new(case);
    let whole = data.clone().run(&Emulated::new()).expect("runs").w.to_f64();
    let cols = data.w.cols;
    let old = random(data.w.rows * cols, 5);
    for (first_row, rows) in [(0, 1), (5, 9), (6, 15), (20, 1), (21, 0)] {
        let mut band = Matrix::<f32>::new(rows, cols, 2, &old[first_row * cols..]);
        merge(&data, band.rows_mut(), first_row).expect("runs");
        let part = whole.slice(ndarray::s![first_row..first_row + rows, ..]).to_owned();
        assert_eq!(band.to_f64(), part);
        band.bits();
        let error = merge(&data, band.rows_mut(), 22 - rows).expect_err("past the end").to_string();
        assert!(error.contains("but the weight has 21 rows"), "{error}");
    }
}

#[test]
fn the_suite_would_notice_a_kernel_that_does_nothing() {
    let data = Data::<bf16>::new(paper());
    let (reference, same_dtype) = (data.oracle(), data.plain());
    let zero = data.answer();
    let fails = |f: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
    assert!(fails(&|| close("y", &zero.y, &same_dtype.y, &reference.y, 2.0)));
    assert!(fails(&|| close("dx", &zero.dx, &same_dtype.dx, &reference.dx, 3.0)));
    assert!(fails(&|| close("grad", &zero.grad, &same_dtype.grad, &reference.grad, 3.0)));
    assert!(fails(&|| close("w", &zero.w, &same_dtype.w, &reference.w, 2.0)));
}
