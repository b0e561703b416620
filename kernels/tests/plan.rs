//! Plans: pure, printable, and inside every limit for any legal problem.

use std::collections::BTreeSet;

use kron_core::{Dtype, KronShape, LayerDims, Pass, Split};
use kron_kernels::plan::BLOCKS;
use kron_kernels::tiles::{SHARED_LIMIT, SMALL_M, TENSOR_CORE_RANKS, dy};
use kron_kernels::{ARCHS, Emulated, GroupPlan, LaunchPlan, Problem, workspace_len};
use proptest::prelude::*;

fn shapes() -> impl Strategy<Value = KronShape> {
    let size = |max| prop_oneof![1..=16usize, (1..=max / 8usize).prop_map(|v| v * 8), 1..=max];
    let rank = prop_oneof![1..=256usize, proptest::sample::select(TENSOR_CORE_RANKS.to_vec())];
    (0..3, 1..=64usize, 1..=64usize, size(20_000), size(20_000), rank).prop_map(
        |(kind, a_out, a_in, b_out, c_in, rank)| match kind {
            0 => KronShape::lora(LayerDims { d_out: b_out, d_in: c_in }, rank).expect("small"),
            1 => {
                let (d_out, d_in) = (a_out * b_out, a_in * c_in);
                KronShape::kron(LayerDims { d_out, d_in }, Split { a_out, a_in }, rank).expect("small")
            }
            _ => {
                let (d_out, d_in) = (a_out * (b_out % 4000 + 1), a_in * c_in);
                KronShape::krona(LayerDims { d_out, d_in }, Split { a_out, a_in }).expect("small")
            }
        },
    )
}

fn problem() -> impl Strategy<Value = Problem> {
    let pass = prop_oneof![
        Just(Pass::Forward),
        Just(Pass::Backward { dx: true }),
        Just(Pass::Backward { dx: false }),
        Just(Pass::Merge)
    ];
    let rows = prop_oneof![0..=64usize, 0..=40_000usize];
    let dtype = proptest::sample::select(Dtype::ALL.to_vec());
    (shapes(), dtype, pass, rows, any::<bool>(), any::<bool>()).prop_map(
        |(shape, dtype, pass, rows, accumulate, aligned)| Problem {
            shape,
            dtype,
            pass,
            rows: if pass == Pass::Merge { rows.min(shape.d_out()) } else { rows },
            accumulate,
            aligned,
        },
    )
}

fn kernels() -> BTreeSet<String> {
    Emulated::kernels().into_iter().filter(|name| name.starts_with("kron_")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_legal_problem_has_a_plan_inside_the_limits(problem in problem()) {
        let plan = LaunchPlan::new(&problem).expect("a legal problem");
        prop_assert_eq!(&plan, &LaunchPlan::new(&problem).expect("a pure function"));
        prop_assert_eq!(plan.steps.is_empty(), problem.rows == 0);
        let kernels = kernels();
        for step in &plan.steps {
            prop_assert!(kernels.contains(step.kernel.as_str()), "{}", step.kernel);
            prop_assert!(step.grid >= 1 && step.grid <= i32::MAX as u32);
            prop_assert!(step.block % 32 == 0 && (32..=1024).contains(&step.block));
            prop_assert!(step.shared as usize <= SHARED_LIMIT);
            prop_assert_eq!(step.grid % step.col_tiles, 0);
            prop_assert_eq!(step.grid / step.col_tiles % step.row_chunks, 0);
        }
        let covering = workspace_len(problem.shape, problem.pass, problem.rows).expect("legal");
        prop_assert!(plan.workspace <= covering, "{} > {}", plan.workspace, covering);
        prop_assert!(plan.bytes >= plan.floor_bytes);
        prop_assert_eq!(plan.floor_bytes == 0, problem.rows == 0);
    }
}

/// The scratch for `rows` rows suffices for every call over fewer rows, and never falls as they grow.
#[test]
fn a_workspace_serves_every_call_over_fewer_rows() {
    let passes = [Pass::Forward, Pass::Backward { dx: true }, Pass::Backward { dx: false }, Pass::Merge];
    let rows = prop_oneof![0..=2 * SMALL_M, 0..=3_000usize, 0..=3_000_000usize];
    // Few rows change the tiles, many only their number.
    let fewer = proptest::collection::vec((any::<bool>(), 0.0..1.0f64), 12);
    let falls = std::cell::Cell::new(0);
    let test = |(shape, rows, fewer): (KronShape, usize, Vec<(bool, f64)>)| {
        for pass in passes {
            let len = workspace_len(shape, pass, rows).expect("legal");
            let scratch = |rows| {
                let taken = Dtype::ALL.map(|dtype| {
                    [false, true].map(|aligned| {
                        let problem = Problem { shape, dtype, pass, rows, accumulate: true, aligned };
                        LaunchPlan::new(&problem).map_or(0, |plan| plan.workspace)
                    })
                });
                taken.into_iter().flatten().max().unwrap_or(0)
            };
            let own = scratch(rows);
            prop_assert!(own <= len, "{} {:?}: {} rows need {}, have {}", shape, pass, rows, own, len);
            for &(few, share) in &fewer {
                let fewer = (if few { rows.min(3 * SMALL_M) } else { rows } as f64 * share) as usize;
                let (taken, shorter) = (scratch(fewer), workspace_len(shape, pass, fewer).expect("legal"));
                let what = format!("{shape} {pass:?}: {rows} rows have {len}, {fewer}");
                prop_assert!(taken <= len, "{} need {}", what, taken);
                prop_assert!(shorter <= len, "{} have {}", what, shorter);
                falls.set(falls.get() + usize::from(taken > own));
            }
        }
        Ok(())
    };
    let cases = ProptestConfig::with_cases(20_000);
    let problem = (shapes(), rows, fewer);
    proptest::test_runner::TestRunner::new(cases).run(&problem, test).expect("every legal problem");
    assert!(falls.get() > 1000, "only {} shorter calls need more", falls.get());
}

/// For every dtype, alignment, rank and size a call at small m is two launches. Their tiles and parts cover
/// all columns and rows, no tile or part is empty, and the scratch suffices that the caller was asked for.
#[test]
fn small_m_is_two_launches_in_each_direction() {
    let problem = (shapes(), any::<bool>(), 1..=SMALL_M, any::<bool>(), 0..=BLOCKS);
    let test = |(shape, aligned, rows, dx, blocks): (KronShape, _, _, _, usize)| {
        for dtype in Dtype::ALL {
            for pass in [Pass::Forward, Pass::Backward { dx }] {
                let problem = Problem { shape, dtype, pass, rows, accumulate: true, aligned };
                let plan = LaunchPlan::aimed_at(blocks, &problem).expect("a legal problem");
                prop_assert_eq!(plan.steps.len(), 2, "{:?}: {}", problem, plan);
                prop_assert!(plan.workspace <= workspace_len(shape, pass, rows).expect("legal"), "{}", plan);
                let (tensor_cores, [first, second]) =
                    (!plan.steps[0].kernel.contains("_t"), [0, 1].map(|i| plan.steps[i]));
                let covers = |total: usize, parts: usize, each: usize| {
                    (parts - 1) * each < total && total <= parts * each
                };
                if pass == Pass::Forward {
                    prop_assert!(covers(shape.c_in(), plan.t.count, plan.t_slice), "{:?}: {}", problem, plan);
                    let tiles = second.col_tiles as usize / shape.a_out();
                    prop_assert!(
                        covers(shape.b_out(), tiles, second.cols as usize),
                        "{:?}: {}",
                        problem,
                        plan
                    );
                    let widest = if tensor_cores { 256 } else { 64 };
                    prop_assert!(second.cols.is_multiple_of(32) && second.cols <= widest, "{}", plan);
                } else if tensor_cores {
                    for (step, total, unit) in [(first, shape.b_out(), 16), (second, shape.c_in(), 32)] {
                        let (tiles, cols) = (step.col_tiles as usize, step.cols as usize);
                        prop_assert!(covers(total, tiles, cols), "{:?}: {}", problem, plan);
                        prop_assert!(cols.is_multiple_of(unit) && cols <= 128, "{:?}: {}", problem, plan);
                    }
                    prop_assert!(
                        covers(shape.a_out(), plan.a_row_groups, plan.rows_per_group),
                        "{:?}: {}",
                        problem,
                        plan
                    );
                    prop_assert_eq!(plan.dt.count, plan.a_row_groups * first.col_tiles as usize);
                } else {
                    prop_assert!(
                        plan.dt.count <= blocks.max(1) && plan.dc.count == 0,
                        "{:?}: {}",
                        problem,
                        plan
                    );
                    prop_assert!(plan.dt.count.is_multiple_of(plan.a_row_groups), "{}", plan);
                    let slices = (shape.b_out(), plan.dt.count / plan.a_row_groups);
                    let groups = [plan.a_row_groups, plan.db.count.max(1)].map(|n| (shape.a_out(), n));
                    for (total, parts) in groups.into_iter().chain([slices]) {
                        prop_assert!((parts - 1) * total.div_ceil(parts) < total, "{:?}: {}", problem, plan);
                    }
                }
            }
        }
        Ok(())
    };
    for rank in [4, 16] {
        let smallest = KronShape::lora(LayerDims { d_out: 8, d_in: 8 }, rank).expect("small");
        test((smallest, true, 1, false, 0)).expect("a plan that aims at no block");
    }
    let cases = ProptestConfig::with_cases(2000);
    proptest::test_runner::TestRunner::new(cases).run(&problem, test).expect("every legal problem");
}

/// The paper's layer, 4096 × 4096 with A 16×2, rank 8.
fn paper(pass: Pass, rows: usize) -> Problem {
    let layer = LayerDims { d_out: 4096, d_in: 4096 };
    let shape = KronShape::kron(layer, Split { a_out: 16, a_in: 2 }, 8).expect("legal");
    Problem { shape, dtype: Dtype::Bf16, pass, rows, accumulate: true, aligned: true }
}

#[test]
fn a_plan_prints_what_it_launches() {
    let plan = LaunchPlan::new(&paper(Pass::Forward, 4096)).expect("legal");
    let text = plan.to_string();
    assert!(text.contains("kron_down_bf16_r8") && text.contains("kron_up_bf16_r8"), "{text}");
    // X once, Y twice, T once, θ once.
    let bytes = 4096 * (2 * 3 * 4096 + 4 * 16) + 4 * (32 + 8 * (256 + 2048));
    assert_eq!(plan.floor_bytes, bytes);
    let h200 = ARCHS.iter().find(|a| a.name == "H200").expect("listed");
    assert!((plan.floor_us(h200) - bytes as f64 / 4.3e6).abs() < 1e-9);

    // Every parameter of the launches, and the time that the bytes allow.
    let printed = |pass, rows| LaunchPlan::new(&paper(pass, rows)).expect("legal").display(h200).to_string();
    let lines = [
        "kron_dy_bf16_n8        grid    256 block 256 shared  64640, 2 column tiles of 128, 128 tiles in 128 chunks, 2 resident, 0.97 waves",
        "kron_dx_bf16_r8        grid    256 block 256 shared  51200, 16 column tiles of 128, 256 tiles in 16 chunks, 2 resident, 0.97 waves",
        "kron_reduce            grid    528 block 256 shared   1024, 1 chunks of 8192 rows, 4 resident, 1.00 waves",
        "parts: T 1 of 2048 columns, dT 2, dA 256, dB 128, dC 16; 1 groups of 16 rows of A",
        "scratch 794624 elements; floor 269181312 bytes, with scratch 275538304",
        "H200: floor 62.60 µs, with scratch 64.08 µs",
    ];
    let text = printed(Pass::Backward { dx: true }, 8192);
    assert_eq!(text.lines().collect::<Vec<_>>(), lines);
    let text = printed(Pass::Forward, 16);
    assert!(text.contains("parts: T 32 of 64 columns"), "{text}");
}

/// With two columns of A groups of two rows run the kernel that keeps dT in registers. They are cheaper where
/// groups of one row are more blocks than multiprocessors.
#[test]
fn groups_have_two_rows_of_a_where_that_is_cheaper() {
    let dy = |a_out| {
        let layer = LayerDims { d_out: 8 * a_out, d_in: 64 };
        let shape = KronShape::kron(layer, Split { a_out, a_in: 2 }, 8).expect("legal");
        let problem = Problem { shape, ..paper(Pass::Backward { dx: true }, 65) };
        let plan = LaunchPlan::new(&problem).expect("legal");
        (plan.a_row_groups, plan.steps[0].kernel.to_string())
    };
    assert_eq!(dy(68), (34, "kron_dy_bf16_n8".to_owned()));
    assert_eq!(dy(60), (60, "kron_dy_bf16_r8".to_owned()));
}

/// The planner's estimates for `dy` are near the instructions that the page counts in the machine code.
#[test]
fn the_planner_knows_the_instructions_of_dy() {
    let page = include_str!("../../docs/KERNELS.md");
    let lines = page.lines().filter_map(|line| line.strip_prefix("| `kron_dy_bf16_"));
    let lines = lines.filter(|line| !line.starts_with("segments"));
    let mut met = 0;
    for line in lines {
        let mut cells = line.split(['`', '|']).map(str::trim).filter(|cell| !cell.is_empty());
        let (tile, counted) = (cells.next().expect("a tile"), cells.next().expect("a count"));
        let columns = ["r", "m", "n"].iter().position(|kind| tile.starts_with(kind)).expect("a kind");
        let (rank, counted) = (tile[1..].parse().expect("a rank"), counted.parse::<f64>().expect("a count"));
        let planned = dy::instructions(rank, columns) as f64;
        assert!((planned / counted - 1.0).abs() < 0.2, "{tile}: {planned} planned, {counted} counted");
        met += 1;
    }
    assert_eq!(met, 14);
}

/// Launches after the first start early where they are a large part of a call's time, and nowhere else.
#[test]
fn launches_start_early_where_latency_counts() {
    let early = |pass, rows| {
        let plan = LaunchPlan::new(&paper(pass, rows)).expect("legal");
        plan.steps.iter().map(|step| step.early).collect::<Vec<_>>()
    };
    for rows in [1, 64, 256, 1024] {
        assert_eq!(early(Pass::Forward, rows), [false, true], "{rows} rows");
        let backward = early(Pass::Backward { dx: true }, rows);
        assert!(!backward[0] && backward[1..].iter().all(|&early| early), "{rows} rows: {backward:?}");
    }
    for rows in [4096, 16384] {
        assert_eq!(early(Pass::Forward, rows), [false, false], "{rows} rows");
        assert_eq!(early(Pass::Backward { dx: true }, rows), [false, false, false], "{rows} rows");
    }
    assert_eq!(early(Pass::Merge, 1), [false]);
    let plan = LaunchPlan::new(&paper(Pass::Forward, 16)).expect("legal");
    assert_eq!(plan.to_string().matches(", starts early").count(), 1, "{plan}");
}

#[test]
fn the_gpu_is_filled_from_one_token_on() {
    for rows in [1, 16, 64, 1024, 4096, 16384] {
        let plan = LaunchPlan::new(&paper(Pass::Forward, rows)).expect("legal");
        assert_eq!(plan.steps.len(), 2, "{plan}");
        assert!(plan.steps[0].grid >= 32, "{rows} rows: {plan}");
        let plan = LaunchPlan::new(&paper(Pass::Backward { dx: true }, rows)).expect("legal");
        assert_eq!(plan.steps.len(), if rows <= SMALL_M { 2 } else { 3 }, "{rows} rows: {plan}");
        assert!(plan.steps.iter().all(|s| s.grid >= 16), "{rows} rows: {plan}");
    }
    // One token on tensor cores: most of 132 multiprocessors have a block at the common ranks. A higher rank
    // has larger and therefore fewer parts, and a layer of 1024 rows has 32 warps' columns.
    for (d_out, d_in) in [(4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096)] {
        for rank in TENSOR_CORE_RANKS {
            let kron = KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 16, a_in: 2 }, rank);
            for shape in [kron, KronShape::lora(LayerDims { d_out, d_in }, rank)].map(|f| f.expect("legal")) {
                let passes = [Pass::Forward, Pass::Backward { dx: true }].into_iter();
                let plans = passes.map(|pass| {
                    LaunchPlan::new(&Problem { shape, pass, ..paper(Pass::Forward, 1) }).expect("legal")
                });
                let least = if rank <= 8 && d_out > 1024 { 96 } else { 32 };
                for plan in plans {
                    assert!(plan.steps.iter().all(|s| s.grid >= least), "{shape:?}: {plan}");
                    assert!(plan.steps.iter().all(|s| !s.kernel.contains("_t")), "{shape:?}: {plan}");
                }
            }
        }
    }
    // The SIMT tile at small m: most of 132 multiprocessors have a block, for LoRA and high rank too; in the
    // forward pass only with one row, because more rows have larger and therefore fewer parts.
    let lora = |rank| KronShape::lora(LayerDims { d_out: 4096, d_in: 4096 }, rank).expect("legal");
    for shape in [paper(Pass::Merge, 1).shape, lora(8), lora(256)] {
        for rows in [1, 3, 16, 64] {
            let pass = Pass::Backward { dx: true };
            let problem = Problem { shape, dtype: Dtype::F32, pass, rows, accumulate: true, aligned: true };
            let plan = LaunchPlan::new(&problem).expect("legal");
            assert!(plan.steps.iter().all(|s| s.grid >= 96), "{rows} rows: {plan}");
            let plan = LaunchPlan::new(&Problem { pass: Pass::Forward, ..problem }).expect("legal");
            let least = if rows == 1 { 96 } else { 32 };
            assert!(plan.steps.iter().all(|s| s.grid >= least), "{rows} rows: {plan}");
        }
    }
}

/// docs/KERNELS.md lists the blocks at small m on tensor cores.
#[test]
fn the_page_lists_the_blocks_at_small_m() {
    let page = include_str!("../../docs/KERNELS.md");
    for rows in [1, 16, 64] {
        let plan = |pass| LaunchPlan::new(&paper(pass, rows)).expect("legal");
        let grids = [Pass::Forward, Pass::Backward { dx: true }].map(plan);
        let grids: Vec<_> = grids.iter().flat_map(|p| &p.steps).map(|step| step.grid.to_string()).collect();
        let line = format!("| {rows} | {} |\n", grids.join(" | "));
        assert!(page.contains(&line), "docs/KERNELS.md lacks {line}");
    }
}

#[test]
fn every_kernel_is_in_some_plan() {
    let mut used = BTreeSet::new();
    let simt = [1, 100];
    let passes = [Pass::Forward, Pass::Backward { dx: true }, Pass::Merge]
        .map(|pass| [10, 100, 5000].map(|rows| (pass, rows)));
    for rank in TENSOR_CORE_RANKS.into_iter().chain(simt) {
        let layer = LayerDims { d_out: 256, d_in: 256 };
        let kron = |a_in| KronShape::kron(layer, Split { a_out: 4, a_in }, rank).expect("legal");
        for (shape, dtype) in
            [kron(1), kron(2), kron(4)].into_iter().flat_map(|s| Dtype::ALL.map(|dtype| (s, dtype)))
        {
            for (pass, rows) in passes.into_iter().flatten() {
                let problem = Problem { shape, dtype, pass, rows, accumulate: true, aligned: true };
                used.extend(
                    LaunchPlan::new(&problem).expect("legal").steps.iter().map(|s| s.kernel.to_string()),
                );
            }
        }
    }
    let rows = 10;
    for (dtype, pass) in Dtype::ALL
        .into_iter()
        .flat_map(|dtype| [Pass::Forward, Pass::Backward { dx: true }].map(|pass| (dtype, pass)))
    {
        let plan = LaunchPlan::segments(&Problem { dtype, ..paper(pass, rows) }, 3).expect("legal");
        used.extend(plan.steps.iter().map(|s| s.kernel.to_string()));
    }
    for pass in [Pass::Forward, Pass::Backward { dx: true }] {
        let x = paper(pass, 4096);
        let term = match pass {
            Pass::Forward => x,
            _ => Problem { pass: Pass::Backward { dx: false }, ..x },
        };
        let plan = GroupPlan::new(&x, &[term; 3]).expect("legal").expect("three terms are joined");
        used.extend(plan.steps().map(|(_, step)| step.kernel.to_string()));
    }
    assert_eq!(used, kernels());
    // The driver looks up these names when it loads the kernels.
    assert_eq!(kron_kernels::kernels().map(|name| name.to_string()).collect::<BTreeSet<_>>(), kernels());
}

#[test]
fn impossible_sizes_are_refused_with_the_numbers() {
    let wide = KronShape::lora(LayerDims { d_out: 1 << 20, d_in: 8 }, 1 << 20).expect("legal on a CPU");
    let wide = LaunchPlan::new(&Problem { shape: wide, ..paper(Pass::Forward, 1) })
        .expect_err("too many")
        .to_string();
    assert!(wide.contains("b_out·rank is 1099511627776"), "{wide}");
    let long = LaunchPlan::new(&paper(Pass::Forward, 1 << 40)).expect_err("too many blocks").to_string();
    assert!(long.contains("but a grid has at most 2147483647"), "{long}");
}
