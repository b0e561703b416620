//! The grids of the tensor-core kernels: whole waves of resident blocks, and equal work in each block.

use kron_adapter::plan::paper_split;
use kron_core::{Dtype, KronShape, LayerDims, Pass, Split};
use kron_kernels::tiles::{SMALL_M, TENSOR_CORE_RANKS, dx, dy};
use kron_kernels::{LaunchPlan, Problem, Step};
use toml::Table;

const PASSES: [Pass; 3] = [Pass::Forward, Pass::Backward { dx: true }, Pass::Backward { dx: false }];

fn plan(shape: KronShape, pass: Pass, rows: usize) -> LaunchPlan {
    let problem = Problem { shape, dtype: Dtype::Bf16, pass, rows, accumulate: true, aligned: true };
    LaunchPlan::new(&problem).expect("a legal problem")
}

/// Every layer of the models that the benchmark times, under the paper's rule.
fn layers() -> Vec<(String, KronShape)> {
    let table: Table = include_str!("../../benches/shapes.toml").parse().expect("a table");
    let mut found = Vec::new();
    for model in table["model"].as_array().expect("models") {
        let number = |of: &toml::Value, key: &str| of[key].as_integer().expect("a number") as usize;
        let split = paper_split(number(model, "hidden"));
        for layer in model["layers"].as_array().expect("layers") {
            let dims = LayerDims { d_out: number(layer, "d_out"), d_in: number(layer, "d_in") };
            let name = format!("{} of {}", layer["name"], model["name"]);
            found.push((name, KronShape::kron(dims, split, 8).expect("the rule divides it")));
        }
    }
    // The made-up model has fewer tiles than multiprocessors.
    found.retain(|(name, _)| !name.contains("tiny\""));
    assert!(found.len() > 15, "{} layers", found.len());
    found
}

/// `reduce` has as many blocks as θ has elements for: its time is latency.
fn is_product(step: &Step) -> bool {
    !step.kernel.contains("reduce")
}

#[test]
fn large_calls_fill_whole_waves() {
    for (name, shape) in layers() {
        for (pass, rows) in PASSES.into_iter().flat_map(|p| [4096, 8192, 16384, 32768].map(|n| (p, n))) {
            let plan = plan(shape, pass, rows);
            for step in plan.steps.iter().filter(|step| is_product(step)) {
                let waves = step.waves();
                assert!(!(1.0 < waves && waves < 1.3), "{name}, {rows} rows: {plan}");
                // A smaller layer has fewer tiles than blocks fit.
                let fills = shape.d_in().max(shape.d_out()) >= 4096 && shape.c_in() >= 2048;
                if fills && !step.kernel.contains("_up_") && !name.contains("qwen") {
                    assert!(
                        1.0 - waves / waves.ceil() <= 0.05,
                        "{name}, {rows} rows, {waves:.3} waves: {plan}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_few_hundred_rows_give_nearly_every_multiprocessor_a_block_of_up() {
    for (name, shape) in layers().into_iter().filter(|(_, shape)| shape.d_in().max(shape.d_out()) >= 4096) {
        for rows in [65, 96, 128, 192, 256, 400, 512, 640, 800] {
            let plan = plan(shape, Pass::Forward, rows);
            let up = plan.steps.iter().find(|step| step.kernel.contains("_up_")).expect("Y is computed");
            assert!(up.cols == 32 || up.grid >= 119, "{name}, {rows} rows: {plan}");
        }
    }
}

/// Equal chunks of tiles, equal groups of A's rows, equal slices of c_in.
#[test]
fn the_work_of_resident_blocks_differs_by_at_most_one_tile() {
    let mut state = 1u64;
    let mut draw = |from: usize, to: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        from + (state >> 33) as usize % (to - from + 1)
    };
    let mut unequal = 0;
    for _ in 0..10_000 {
        let rank = TENSOR_CORE_RANKS[draw(0, 5)];
        let (a_out, a_in) = (4 * draw(1, 12), draw(1, 4));
        let dims = LayerDims { d_out: a_out * 8 * draw(1, 300), d_in: a_in * 8 * draw(1, 600) };
        let shape = match draw(0, 2) {
            0 => KronShape::lora(dims, rank),
            _ => KronShape::kron(dims, Split { a_out, a_in }, rank),
        };
        let (shape, rows) = (shape.expect("it divides the layer"), draw(SMALL_M + 1, 20_000));
        let forward = plan(shape, Pass::Forward, rows);
        // Slices of whole stages, of which some have one more.
        let stages = forward.t_slice.div_ceil(64) * forward.t.count + forward.t_longer;
        assert!(stages == shape.c_in().div_ceil(64) && forward.t_longer < forward.t.count, "{forward}");
        let backward = plan(shape, Pass::Backward { dx: true }, rows);
        if !backward.steps[0].kernel.contains("_dy_") {
            continue; // dT of a tile is too large for shared memory
        }
        // A chunk has ⌊tiles / chunks⌋ tiles or one more; none is empty.
        for (step, tiles) in [(0, rows.div_ceil(dy::rows(rank))), (1, dx::tiles(rows, shape.a_in()))] {
            let step = backward.steps[step];
            assert_eq!(step.tiles as usize, tiles, "{backward}");
            assert!((1..=tiles).contains(&(step.row_chunks as usize)), "{backward}");
        }
        if !shape.a_out().is_multiple_of(backward.a_row_groups) {
            // Only where shared memory holds fewer rows of A than equal groups would have.
            assert!(dy::max_group(rank, shape.a_in()) < shape.a_out(), "{backward}");
            unequal += 1;
        }
    }
    assert!(unequal < 100, "{unequal} of 10000 problems have unequal groups");
}
