//! Prints the predictions of docs/KERNELS.md: `cargo run -p kron-kernels --example floors`.

use kron_core::{Dtype, KronShape, LayerDims, Pass, Result, Split};
use kron_kernels::{ARCHS, LaunchPlan, Problem};

fn main() -> Result<()> {
    let kron = KronShape::kron(LayerDims { d_out: 4096, d_in: 4096 }, Split { a_out: 16, a_in: 2 }, 8)?;
    let Some(h200) = ARCHS.iter().find(|a| a.name == "H200") else { return Ok(()) };
    for (name, pass) in [("forward", Pass::Forward), ("backward", Pass::Backward { dx: true })] {
        for rows in [64, 1024, 4096, 16384] {
            let plan = plan(kron, Dtype::Bf16, pass, rows)?;
            let floor = plan.floor_us(h200);
            let scratch = floor * plan.bytes as f64 / plan.floor_bytes as f64;
            println!("| {name} | {rows} | {floor:.1} µs | {scratch:.1} µs |");
        }
    }
    for (name, shape) in [
        ("(16, 2), r 8", kron),
        ("LoRA, r 8", KronShape::lora(LayerDims { d_out: 4096, d_in: 4096 }, 8)?),
        ("LoRA, r 256", KronShape::lora(LayerDims { d_out: 4096, d_in: 4096 }, 256)?),
    ] {
        for rows in [1, 16, 64] {
            small_m(name, shape, rows)?;
        }
    }
    Ok(())
}

fn plan(shape: KronShape, dtype: Dtype, pass: Pass, rows: usize) -> Result<LaunchPlan> {
    LaunchPlan::new(&Problem { shape, dtype, pass, rows, accumulate: true, aligned: true })
}

/// Prints the work of the two launches' blocks, in steps of 32 terms.
fn small_m(name: &str, f: KronShape, rows: usize) -> Result<()> {
    let plan = plan(f, Dtype::F32, Pass::Backward { dx: true }, rows)?;
    let (dt, db) = (plan.dt.count, plan.db.count);
    let columns = f.b_out().div_ceil(dt / plan.a_row_groups);
    let share = plan.rows_per_group.div_ceil(64 / rows) * columns.div_ceil(32);
    let db_steps = (rows * f.a_out().div_ceil(db)).div_ceil(32);
    let (dc_steps, dx_steps) = ((rows * f.a_in()).div_ceil(32), f.width().div_ceil(32));
    let [dy, dx] = [0, 1].map(|i| plan.steps[i]);
    let shares = dt as u32 * dy.col_tiles;
    let dc = f.width().div_ceil(64) as u32 * dx.col_tiles;
    let scratch = 4 * plan.workspace;
    println!(
        "| {name} | {rows} | {shares} × {share} | {} × {db_steps} | {dc} × {dc_steps} | {} × {dx_steps} | {dt} | {} | {scratch} |",
        dy.grid - shares,
        dx.grid - dc,
        plan.floor_bytes,
    );
    Ok(())
}
