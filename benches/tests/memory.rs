//! Each engine's own figure for the memory that it keeps agrees with the allocator's,
//! and the fused engines keep only T and the workspace.

use std::sync::Arc;

use kron_bench::data::{Set, uniform};
use kron_bench::engine::EngineConfig;
use kron_bench::engines::{self, Kind};
use kron_bench::memory::{kept_by, peak_during};
use kron_core::{Backend, Cpu, KronOp, KronShape, LayerDims, Pass, Scale, Split, Theta};

/// Bytes of boxes, vectors of vectors, and the scratch of the GEMM crates' threads.
const BOOKKEEPING: usize = 32 << 10;

// One test: the allocator counts for the whole process.
#[test]
fn extra_memory_is_what_the_engine_says() {
    let (d_out, d_in, rows) = (1024, 768, 300);
    let scale = Scale::new(4.0).unwrap();
    let kron = KronOp::new(
        KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 16, a_in: 2 }, 8).unwrap(),
        scale,
    );
    let lora = KronOp::new(KronShape::lora(LayerDims { d_out, d_in }, 8).unwrap(), scale);
    let weight = Arc::new(uniform::<f32>(d_out, d_in, 0.05, 1));
    let cpu = Cpu::new();
    let config = EngineConfig { rows, threads: 2, cpu, weight: Some(weight) };
    let mut set = Set::<f32>::random(rows, LayerDims { d_out, d_in }, kron.t_len(rows), 3);
    for kind in Kind::ALL {
        let problem = kind.problem(kron, lora);
        let theta = problem.shape().map(|s| Theta::random(s, 7));
        let choice = engines::choose(kind, &problem, theta.as_ref(), &config, &mut set).unwrap();
        let (mut engine, kept) = kept_by(|| engines::build(kind, choice, &problem, theta.as_ref(), &config));
        // T stands in the set; θ and its gradient are the trainer's, and merging has a weight of its own.
        let t = problem.op().map_or(0, |op| 4 * op.t_len(rows));
        let own_weight = if kind == Kind::MergePerStep { 4 * d_out * d_in } else { 0 };
        let reported = engine.scratch_bytes(true) + 8 * problem.params() + own_weight - t;
        assert!(kept.abs_diff(reported) <= BOOKKEEPING, "{}: {kept} kept, {reported} reported", kind.name());

        let (done, peak) = peak_during(|| engine.forward(&mut set).and_then(|()| engine.backward(&mut set)));
        done.unwrap();
        if matches!(kind, Kind::LoraFused | Kind::KronFused) {
            let op = problem.op().unwrap();
            let workspace =
                [Pass::Forward, Pass::Backward { dx: true }].map(|p| cpu.workspace_len(&op, p, rows));
            assert_eq!(engine.scratch_bytes(true), t + 4 * workspace.into_iter().max().unwrap());
            assert!(peak <= BOOKKEEPING, "{} allocated {peak} bytes in its passes", kind.name());
            assert!(engine.scratch_bytes(true) < 4 * rows * d_out, "{} keeps a second Y", kind.name());
        }
    }
}
