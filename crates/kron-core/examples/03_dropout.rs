//! Dropout without a stored mask: a key selects the mask, and backward recomputes the mask
//! of forward. Run with `cargo run -p kron-core --example 03_dropout`.

use kron_core::{
    Accum, Backend, Backward, Cpu, Dropout, DropoutKey, Forward, KronOp, KronShape, LayerDims, Pass, Result,
    Scale, Split, Theta,
};
use ndarray::Array2;

/// Runs the example.
pub fn main() -> Result<()> {
    let layer = LayerDims { d_out: 512, d_in: 384 };
    let shape = KronShape::kron(layer, Split { a_out: 16, a_in: 2 }, 8)?;
    let dropout = Dropout::new(0.25)?;
    let op = KronOp::new(shape, Scale::alpha_over_r(32.0, 8)?).with_dropout(dropout);
    let theta = Theta::random(shape, 1);
    let (cpu, rows) = (Cpu::new(), 8);
    let x = Array2::from_shape_fn((rows, shape.d_in()), |(n, k)| ((n * 31 + k * 7) % 17) as f32 / 17.0);
    let mut t = vec![0.0; op.t_len(rows)];
    let mut workspace = vec![0.0; cpu.workspace_len(&op, Pass::Forward, rows)];
    let mut forward = |dropout: Option<DropoutKey>, x: &Array2<f32>| {
        let mut y = Array2::zeros((rows, shape.d_out()));
        cpu.forward(
            &op,
            Forward {
                theta: theta.as_slice(),
                x: x.view(),
                y: y.view_mut(),
                accum: Accum::Replace,
                t: &mut t,
                workspace: &mut workspace,
                dropout,
            },
        )
        .map(|()| y)
    };

    // Equal keys select equal masks. Give every layer and every step an offset of its own.
    let key = DropoutKey { seed: 42, offset: 0 };
    let y = forward(Some(key), &x)?;
    assert_eq!(y, forward(Some(key), &x)?);
    assert_ne!(y, forward(Some(DropoutKey { offset: 1, ..key }), &x)?);

    // The mask by its definition: kept elements are multiplied by 1 / (1 − p).
    let mask = Array2::from_shape_fn(x.dim(), |(n, k)| match dropout.keeps(key, shape.d_in(), n, k) {
        true => dropout.keep_scale(),
        false => 0.0,
    });
    // Without a key, as in evaluation, nothing is dropped.
    let masked = forward(None, &(&x * &mask))?;
    let norm = |m: &Array2<f32>| m.iter().map(|v| v * v).sum::<f32>().sqrt();
    assert!(norm(&(&y - &masked)) < 1e-5 * norm(&y));

    // Backward with the same key: dX is 0 exactly where forward dropped X.
    forward(Some(key), &x)?; // writes t again
    let (mut dx, mut grad) = (Array2::zeros(x.dim()), vec![0.0; shape.params()]);
    workspace.resize(cpu.workspace_len(&op, Pass::Backward { dx: true }, rows), 0.0);
    cpu.backward(
        &op,
        Backward {
            theta: theta.as_slice(),
            x: x.view(),
            t: &t,
            dy: y.view(),
            dx: Some((dx.view_mut(), Accum::Replace)),
            grad: &mut grad,
            workspace: &mut workspace,
            dropout: Some(key),
        },
    )?;
    assert!(dx.iter().zip(&mask).all(|(&dx, &mask)| (dx == 0.0) == (mask == 0.0)));
    let dropped = mask.iter().filter(|&&m| m == 0.0).count();
    println!("{dropped} of {} elements dropped", mask.len());
    Ok(())
}
