//! How much memory a call may ask for, over layers of real models: T is
//! n·a_in·r, the workspace O(θ) plus the ranks of the tokens in flight, and
//! there is neither a ΔW nor a second Y.

use kron_adapter::plan::{AdapterPlan, Method, PRESETS, preset};
use kron_core::{Backend, Cpu, KronOp, KronShape, Pass, Scale};
use kron_tests::backends;

/// Kron-LoRA as the paper has it, and LoRA, at two ranks, on every layer of every preset.
fn shapes() -> Vec<(String, KronShape)> {
    let models = PRESETS.iter().map(|name| preset(name).expect("a preset"));
    let plans = models.flat_map(|model| {
        let methods = [8, 64].into_iter().flat_map(|r| [Method::paper(&model, r), Method::Lora { rank: r }]);
        methods
            .map(|m| (model.name().to_owned(), AdapterPlan::new(&model, m).expect("legal")))
            .collect::<Vec<_>>()
    });
    let named = |(model, plan): (String, AdapterPlan)| {
        let rows = plan.rows.into_iter();
        rows.map(move |row| (format!("{model} {}: {}", row.linear.name(), row.shape), row.shape))
    };
    plans.flat_map(named).collect()
}

fn op(shape: KronShape) -> KronOp {
    KronOp::new(shape, Scale::new(4.0).expect("finite"))
}

fn all_passes(cpu: &Cpu, op: &KronOp, rows: usize) -> [(Pass, usize); 3] {
    let merge_rows = rows.min(op.shape.d_out());
    [
        (Pass::Forward, cpu.workspace_len(op, Pass::Forward, rows)),
        (Pass::Backward { dx: true }, cpu.workspace_len(op, Pass::Backward { dx: true }, rows)),
        (Pass::Merge, cpu.workspace_len(op, Pass::Merge, merge_rows)),
    ]
}

/// Packed factors and at most 32 partial gradients, in whole registers; T, dT,
/// U, dU and copies of them for the at most 32 blocks of 32 rows in flight, or V, Z
/// and a packed one of 4096 elements each for those blocks.
/// Nothing in the bound knows d_in·d_out, or grows with the rows for ever.
#[test]
fn the_workspace_is_linear_in_theta_and_in_the_ranks_in_flight() {
    for (name, s) in shapes() {
        let op = op(s);
        let width = s.b_out().next_multiple_of(16) + s.c_in().next_multiple_of(16);
        let theta = s.a_out() * s.a_in() + s.width() * width;
        for rows in [0, 1, 16, 256, 2048, 65536] {
            assert_eq!(op.t_len(rows), rows * s.a_in() * s.width(), "{name}");
            let in_flight = rows.min(32 * 32) * (s.a_in() + s.a_out()) * s.width();
            for cpu in backends() {
                for (pass, len) in all_passes(&cpu, &op, rows) {
                    let (thetas, copies, in_cache) =
                        if matches!(pass, Pass::Backward { .. }) { (34, 4, 3) } else { (2, 3, 1) };
                    let in_cache = in_cache * rows.min(32) * 4096;
                    let bound = thetas * theta + copies * in_flight + in_cache + 1024;
                    assert!(len <= bound, "{name}, {rows} rows, {pass:?}: {len} > {bound}");
                }
            }
        }
    }
}

/// From 4096 rows on, T and the workspace together take less than a bf16 Y at
/// the paper's rank; and the workspace stops growing with the rows.
#[test]
fn there_is_no_second_y() {
    for (name, s) in shapes().into_iter().filter(|(_, s)| s.rank() == Some(8)) {
        let op = op(s);
        for cpu in backends() {
            for rows in [4096, 65536] {
                let y_bytes = 2 * rows * s.d_out();
                for (pass, len) in all_passes(&cpu, &op, rows) {
                    let bytes = 4 * (op.t_len(rows) + len);
                    assert!(bytes < y_bytes, "{name}, {rows} rows, {pass:?}: {bytes} of {y_bytes} bytes");
                }
            }
            for pass in [Pass::Forward, Pass::Backward { dx: true }] {
                let len = |rows| cpu.workspace_len(&op, pass, rows);
                assert_eq!(len(1 << 17), len(1 << 24), "{name}, {pass:?}");
            }
        }
    }
}
