//! Prints the plans of the paper's layer for some numbers of rows, one forward and one backward each:
//! 4096 × 4096, A 16×2, rank 8, bf16, Y and dX added to.
//!
//! `cargo run -p kron-kernels --example plan -- 1 16 64`

use kron_core::{Dtype, KronShape, LayerDims, Pass, Split};
use kron_kernels::{ARCHS, LaunchPlan, Problem};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let shape = KronShape::kron(LayerDims { d_out: 4096, d_in: 4096 }, Split { a_out: 16, a_in: 2 }, 8)?;
    let Some(h200) = ARCHS.iter().find(|a| a.name == "H200") else { return Ok(()) };
    for rows in std::env::args().skip(1) {
        let rows = rows.parse()?;
        for (name, pass) in [("forward", Pass::Forward), ("backward", Pass::Backward { dx: true })] {
            let problem = Problem { shape, dtype: Dtype::Bf16, pass, rows, accumulate: true, aligned: true };
            println!("{name}, {rows} rows\n{}", LaunchPlan::new(&problem)?.display(h200));
        }
    }
    Ok(())
}
