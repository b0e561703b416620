//! Merges an adapter into a weight, band by band, and checks that the merged layer computes
//! the same as layer and adapter apart. Run with `cargo run -p kron-core --example 02_merge`.

use kron_core::{
    Accum, Backend, Cpu, Forward, KronOp, KronShape, LayerDims, Merge, Pass, Result, Scale, Split, Theta,
};
use ndarray::{Array2, s};

/// Runs the example.
pub fn main() -> Result<()> {
    let layer = LayerDims { d_out: 512, d_in: 384 };
    let shape = KronShape::kron(layer, Split { a_out: 16, a_in: 2 }, 8)?;
    let op = KronOp::new(shape, Scale::alpha_over_r(32.0, 8)?);
    let theta = Theta::random(shape, 1);
    let weight = Array2::from_shape_fn((512, 384), |(o, i)| ((o * 13 + i * 5) % 19) as f32 / 190.0);

    // Bands of 128 rows: a program that streams a file never holds the whole weight.
    let (cpu, band) = (Cpu::new(), 128);
    let mut merged = weight.clone();
    let mut workspace = vec![0.0; cpu.workspace_len(&op, Pass::Merge, band)];
    for first_row in (0..shape.d_out()).step_by(band) {
        cpu.merge(
            &op,
            Merge {
                theta: theta.as_slice(),
                w: merged.slice_mut(s![first_row..first_row + band, ..]),
                first_row,
                accum: Accum::Add,
                workspace: &mut workspace,
            },
        )?;
    }

    // Layer and adapter apart: Y = X·Wᵀ, then the adapter's output is added.
    let rows = 4;
    let x = Array2::from_shape_fn((rows, shape.d_in()), |(n, k)| ((n * 31 + k * 7) % 17) as f32 / 17.0);
    let mut apart = x.dot(&weight.t());
    let mut workspace = vec![0.0; cpu.workspace_len(&op, Pass::Forward, rows)];
    cpu.forward(
        &op,
        Forward {
            theta: theta.as_slice(),
            x: x.view(),
            y: apart.view_mut(),
            accum: Accum::Add,
            t: &mut vec![0.0; op.t_len(rows)],
            workspace: &mut workspace,
            dropout: None,
        },
    )?;

    let together = x.dot(&merged.t());
    let norm = |m: &Array2<f32>| m.iter().map(|v| v * v).sum::<f32>().sqrt();
    let error = norm(&(&together - &apart)) / norm(&apart);
    println!("merged and apart differ by {error:.1e}");
    assert!(error < 1e-5);
    Ok(())
}
