//! Prints the launches from which `scripts/cuda_gates.py` predicts times: a line for each kernel of each
//! call over Mistral-7B's layers (A 16×2, r 8, bf16, Y and dX added to), and one for each kernel's resources.
//!
//! `call,pass,layer,rows,floor bytes,kernel,blocks,threads,steps of the longest block,steps of all,bytes`
//! `group,pass,layers,rows,way,floor bytes,kernel,blocks,threads,steps of the longest block,steps of all,bytes`
//! `kernel,name,threads,shared bytes,resident blocks`
//! `segments,pass,method,adapters,rows of each,floor bytes,kernel,blocks with rows,threads,steps of a warp,bytes`

use std::collections::BTreeMap;

use kron_core::{Dtype, KronShape, LayerDims, Pass, Result, Split};
use kron_kernels::{GroupPlan, LaunchPlan, Problem, Step};

const LAYERS: [(&str, usize, usize); 4] =
    [("q", 4096, 4096), ("k/v", 1024, 4096), ("gate/up", 14336, 4096), ("down", 4096, 14336)];
const PASSES: [(&str, Pass); 2] = [("forward", Pass::Forward), ("backward", Pass::Backward { dx: true })];

fn main() -> Result<()> {
    let kron =
        |d_out, d_in, a_in, r| KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 16, a_in }, r);
    for (name, pass) in PASSES {
        for (layer, d_out, d_in) in LAYERS {
            for rows in [256, 1024, 4096, 16384] {
                let problem = problem(kron(d_out, d_in, 2, 8)?, Dtype::Bf16, pass, rows);
                let plan = LaunchPlan::new(&problem)?;
                for step in &plan.steps {
                    let Step { kernel, grid, block, .. } = step;
                    let (longest, all) = steps(&problem, &plan, step);
                    let bytes = bytes(&problem, &plan, step);
                    let floor = plan.floor_bytes;
                    println!(
                        "call,{name},{layer},{rows},{floor},{kernel},{grid},{block},{longest},{all},{bytes}"
                    );
                }
            }
        }
    }
    for (name, pass) in PASSES {
        for (layers, d_outs) in [("q/k/v", &[4096, 1024, 1024][..]), ("gate/up", &[14336, 14336])] {
            for rows in [256, 1024, 4096, 16384] {
                let shapes = d_outs.iter().map(|&d_out| kron(d_out, 4096, 2, 8));
                group((name, pass), layers, &shapes.collect::<Result<Vec<_>>>()?, rows)?;
            }
        }
    }
    let mut kernels = BTreeMap::new();
    for (_, pass) in PASSES {
        for rank in [4, 8, 16, 32, 64, 128, 1, 100] {
            for (a_in, rows) in [1, 2, 4].into_iter().flat_map(|a_in| [16, 4096].map(|rows| (a_in, rows))) {
                for dtype in Dtype::ALL {
                    for step in
                        LaunchPlan::new(&problem(kron(4096, 4096, a_in, rank)?, dtype, pass, rows))?.steps
                    {
                        kernels.insert(step.kernel, step);
                    }
                }
            }
        }
    }
    let (kron, lora) = (kron(4096, 4096, 2, 8)?, KronShape::lora(LayerDims { d_out: 4096, d_in: 4096 }, 8)?);
    for (pass, method, shape) in
        [(0, "Kron-LoRA", kron), (0, "LoRA", lora), (1, "Kron-LoRA", kron), (1, "LoRA", lora)]
    {
        for (adapters, rows) in [1, 16, 256, 1024].into_iter().flat_map(|a| [1, 4, 16].map(|rows| (a, rows)))
        {
            segments(PASSES[pass], method, shape, [adapters, rows])?;
        }
        for dtype in Dtype::ALL {
            let problem = problem(shape, dtype, PASSES[pass].1, 16);
            kernels.extend(
                LaunchPlan::segments(&problem, 16)?.steps.into_iter().map(|step| (step.kernel, step)),
            );
        }
    }
    for (name, step) in kernels {
        println!("kernel,{name},{},{},{}", step.block, step.shared, step.resident);
    }
    Ok(())
}

fn problem(shape: KronShape, dtype: Dtype, pass: Pass, rows: usize) -> Problem {
    Problem { shape, dtype, pass, rows, accumulate: true, aligned: true }
}

/// Returns the steps of the main loop in the longest block, and those of all blocks.
fn steps(problem: &Problem, plan: &LaunchPlan, step: &Step) -> (usize, usize) {
    let (s, grid) = (problem.shape, step.grid as usize);
    let (tiles, chunks) = (step.tiles as usize, step.row_chunks as usize);
    match step.kernel.split('_').nth(1) {
        Some("down") => {
            let longest = plan.t_slice.div_ceil(64) + usize::from(plan.t_longer > 0);
            (longest, s.c_in().div_ceil(64) * (grid / plan.t.count))
        }
        Some("dy") => {
            (tiles.div_ceil(chunks) * plan.rows_per_group, tiles * s.a_out() * step.col_tiles as usize)
        }
        Some("dx") => (tiles.div_ceil(chunks), tiles * step.col_tiles as usize),
        Some("reduce") => (s.params().div_ceil(32 * grid), s.params().div_ceil(32)),
        _ => (0, 0), // `up` has no loop
    }
}

/// Returns the bytes that a kernel moves if no cache holds any: activations, T, and parts of sums.
fn bytes(problem: &Problem, plan: &LaunchPlan, step: &Step) -> usize {
    let (s, n) = (problem.shape, problem.rows);
    let t = 4 * n * s.t_row();
    let gradients = 4 * (plan.da.count * s.a_len() + plan.db.count * s.b_len());
    match step.kernel.split('_').nth(1) {
        Some("down") => 2 * n * s.d_in() + t * plan.t.count,
        Some("up") => 4 * n * s.d_out() + t * plan.t.count,
        Some("dy") => 2 * n * s.d_out() + t * (1 + plan.dt.count) + gradients,
        Some("dx") => 6 * n * s.d_in() + t * plan.dt.count + 4 * plan.dc.count * s.c_len(),
        _ => gradients + 4 * plan.dc.count * s.c_len() + 8 * s.params(),
    }
}

/// Prints the launches of a call over several adapters on one X, joined and one after the other.
fn group((name, pass): (&str, Pass), layers: &str, shapes: &[KronShape], rows: usize) -> Result<()> {
    let whole = |&shape: &KronShape| problem(shape, Dtype::Bf16, pass, rows);
    let terms: Vec<Problem> = match pass {
        Pass::Backward { .. } => shapes
            .iter()
            .map(|shape| Problem { pass: Pass::Backward { dx: false }, ..whole(shape) })
            .collect(),
        _ => shapes.iter().map(whole).collect(),
    };
    let x = whole(&shapes[0]);
    let Some(joined) = GroupPlan::new(&x, &terms)? else { return Ok(()) };
    let line = |way: &str, step: &Step, (longest, all): (usize, usize), bytes: usize| {
        let Step { kernel, grid, block, .. } = step;
        let floor = joined.floor_bytes;
        println!(
            "group,{name},{layers},{rows},{way},{floor},{kernel},{grid},{block},{longest},{all},{bytes}"
        );
    };
    let t = |problem: &Problem| 4 * rows * problem.shape.t_row();
    let of_terms = |of: &dyn Fn(&Problem, &LaunchPlan) -> usize| -> usize {
        std::iter::zip(&terms, &joined.terms).map(|(problem, plan)| of(problem, plan)).sum()
    };
    for (term, step) in joined.steps() {
        let (problem, plan) = match term {
            None => (&joined.stacked, &joined.over_x),
            Some(k) => (&terms[k], &joined.terms[k]),
        };
        let bytes = match step.kernel.as_str() {
            "kron_stack" => 8 * problem.shape.c_len(),
            "kron_split" => t(problem) * plan.t.count + of_terms(&|problem, _| t(problem)),
            "kron_join" => t(problem) + of_terms(&|problem, plan| t(problem) * plan.dt.count),
            "kron_reduce" => bytes(problem, plan, step) + 4 * joined.over_x.dc.count * problem.shape.c_len(),
            _ => bytes(problem, plan, step),
        };
        line("joined", step, steps(problem, plan, step), bytes);
    }
    for problem in shapes.iter().map(whole) {
        let plan = LaunchPlan::new(&problem)?;
        for step in &plan.steps {
            line("alone", step, steps(&problem, &plan, step), bytes(&problem, &plan, step));
        }
    }
    Ok(())
}

/// Prints the launches of a call over segments: a pool of `adapters`, each with `rows` rows, in bf16.
fn segments(
    (name, pass): (&str, Pass),
    method: &str,
    s: KronShape,
    [adapters, rows]: [usize; 2],
) -> Result<()> {
    use kron_kernels::tiles::segments::{COLS, WARPS, column_ways};
    let n = adapters * rows;
    let plan = LaunchPlan::segments(&problem(s, Dtype::Bf16, pass, n), adapters)?;
    let (tiles, of_tile) = (adapters * rows.div_ceil(plan.tile_rows), rows.min(plan.tile_rows));
    // Pairs of rows (token, block) of a warp, and the slices of columns in which it meets each.
    let pairs =
        |blocks: usize, width: usize| (of_tile * blocks).div_ceil(2).div_ceil(WARPS / column_ways(width));
    let slices = |width: usize| width.div_ceil(COLS * column_ways(width));
    let (t, wide) = (4 * n * s.t_row(), 4 * n * s.a_out() * s.width());
    let [b, c, a] = [s.b_len(), s.c_len(), s.a_len()].map(|len| 4 * adapters * len);
    let (x, y) = (2 * n * s.d_in(), 2 * n * s.d_out());
    for step in &plan.steps {
        let blocks = tiles * step.col_tiles as usize;
        let (blocks, steps, bytes) = match step.kernel.split('_').nth(1) {
            Some("sort") => (adapters, 0, 4 * n * 2 + 16 * plan.segments.count),
            Some("down") => (blocks, pairs(s.a_in(), s.c_in()) * slices(s.c_in()), x + c + a + t + wide),
            Some("up") => (blocks, pairs(s.a_out(), s.b_out()), 2 * y + b + wide),
            Some("dy") => {
                (blocks, pairs(s.a_out(), s.b_out()) * slices(s.b_out()), y + b + a + 2 * t + 2 * wide)
            }
            Some("dx") => (blocks, pairs(s.a_in(), s.c_in()), 2 * x + c + t),
            _ => {
                let pairs = |blocks: usize, width: usize| {
                    (rows * blocks).div_ceil(2).div_ceil(WARPS / column_ways(width))
                };
                let longest = pairs(s.a_in(), s.c_in()).max(pairs(s.a_out(), s.b_out()));
                (adapters * step.col_tiles as usize, longest, x + y + 2 * (a + b + c) + 2 * t + 2 * wide)
            }
        };
        let floor = plan.floor_bytes;
        println!(
            "segments,{name},{method},{adapters},{rows},{floor},{},{blocks},{},{steps},{bytes}",
            step.kernel, step.block
        );
    }
    Ok(())
}
