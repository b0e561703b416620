//! One training step of one layer: forward, backward and a step of gradient descent.
//! Run with `cargo run -p kron-core --example 01_forward_backward`.

use kron_core::{
    Accum, Backend, Backward, Cpu, Forward, KronOp, KronShape, LayerDims, Pass, Result, Scale, Split, Theta,
    reference,
};
use ndarray::Array2;

/// Runs the example.
pub fn main() -> Result<()> {
    // A 512 × 384 layer, A of 16 × 2, rank 8, s = 32 / 8.
    let layer = LayerDims { d_out: 512, d_in: 384 };
    let shape = KronShape::kron(layer, Split { a_out: 16, a_in: 2 }, 8)?;
    let op = KronOp::new(shape, Scale::alpha_over_r(32.0, 8)?);
    let mut theta = Theta::random(shape, 1); // [A | B | C]; Theta::init starts training, with B = 0
    println!("{shape}: {} parameters", shape.params());

    // The caller brings all memory. One workspace serves both passes.
    let (cpu, rows) = (Cpu::new(), 16);
    let passes = [Pass::Forward, Pass::Backward { dx: true }];
    let len = passes.map(|pass| cpu.workspace_len(&op, pass, rows));
    let mut workspace = vec![0.0; len[0].max(len[1])];
    let mut t = vec![0.0; op.t_len(rows)];

    // y holds the frozen layer's output for x, here 1; the adapter's output is added.
    let x = Array2::from_shape_fn((rows, shape.d_in()), |(n, k)| ((n * 31 + k * 7) % 17) as f32 / 17.0);
    let mut y = Array2::from_elem((rows, shape.d_out()), 1.0_f32);
    cpu.forward(
        &op,
        Forward {
            theta: theta.as_slice(),
            x: x.view(),
            y: y.view_mut(),
            accum: Accum::Add,
            t: &mut t,
            workspace: &mut workspace,
            dropout: None,
        },
    )?;

    // The loss is ½·|y − 1|², so dY = y − 1. Backward takes the t that forward wrote.
    let dy = &y - 1.0;
    let (mut dx, mut grad) = (Array2::zeros(x.dim()), vec![0.0; shape.params()]);
    cpu.backward(
        &op,
        Backward {
            theta: theta.as_slice(),
            x: x.view(),
            t: &t,
            dy: dy.view(),
            dx: Some((dx.view_mut(), Accum::Add)),
            grad: &mut grad,
            workspace: &mut workspace,
            dropout: None,
        },
    )?;

    // The float64 oracle, which builds ΔW, computes the same.
    let (x64, dy64) = (x.mapv(f64::from), dy.mapv(f64::from));
    let y64 = reference::forward(&op, &theta, x64.view()) + 1.0;
    let want = reference::backward(&op, &theta, x64.view(), dy64.view());
    assert!(error(&y, &y64) < 1e-6);
    assert!(error(&dx, &want.dx) < 1e-6);
    assert!(error(&grad, &want.theta) < 1e-6);

    // An optimizer reads the flat gradient and updates the flat θ.
    let rate = 1e-6;
    theta.as_mut_slice().iter_mut().zip(&grad).for_each(|(v, g)| *v -= rate * g);
    let after = reference::forward(&op, &theta, x64.view());
    let loss = |y: &Array2<f64>| 0.5 * y.iter().map(|y| y * y).sum::<f64>();
    let (before, after) = (loss(&(y64 - 1.0)), loss(&after));
    println!("loss {before:.1} → {after:.1}");
    assert!(after < before);
    Ok(())
}

/// Returns |got − want| / |want|.
fn error<'a>(got: impl IntoIterator<Item = &'a f32>, want: impl IntoIterator<Item = &'a f64>) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (got, want) in got.into_iter().zip(want) {
        difference += (f64::from(*got) - want).powi(2);
        norm += want.powi(2);
    }
    (difference / norm).sqrt()
}
