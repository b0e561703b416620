//! Prints the predictions of docs/KERNELS.md: `cargo run -p kron-kernels --example floors`.

use kron_kernels::{ARCHS, Dtype, Factors, Pass, Plan, Problem};

fn main() -> kron_kernels::Result<()> {
    let factors = Factors::kron(16, 2, 256, 2048, 8)?;
    let Some(h200) = ARCHS.iter().find(|a| a.name == "H200") else { return Ok(()) };
    for (name, pass) in [("forward", Pass::Forward), ("backward", Pass::Backward { dx: true })] {
        for rows in [64, 1024, 4096, 16384] {
            let problem =
                Problem { factors, dtype: Dtype::Bf16, pass, rows, accumulate: true, aligned: true };
            let plan = Plan::new(&problem)?;
            let floor = plan.floor_us(h200);
            let scratch = floor * plan.bytes as f64 / plan.floor_bytes as f64;
            println!("| {name} | {rows} | {floor:.1} µs | {scratch:.1} µs |");
        }
    }
    Ok(())
}
