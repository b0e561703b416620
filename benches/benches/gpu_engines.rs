//! Every engine of `kron-bench --device cuda:0` under criterion, on one layer of
//! Mistral-7B. For a development loop on one kernel; the checked, interleaved
//! comparison is `kron-bench` itself.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use kron_bench::device::{Bench, Single};
use kron_bench::engines::Kind;
use kron_bench::problem::{LayerTask, TimedPasses};
use kron_core::{Element, KronOp, KronShape, LayerDims, Scale, Split};

/// q_proj and o_proj of Mistral-7B.
const LAYER: LayerDims = LayerDims { d_out: 4096, d_in: 4096 };
const ROWS: [usize; 3] = [1, 64, 4096];
const RANK: usize = 8;
/// The paper's outer factor for a hidden size of 4096.
const A: Split = Split { a_out: 16, a_in: 2 };

fn engines(c: &mut Criterion) {
    let mut bench = match Bench::open(0, false) {
        Ok(bench) => bench,
        Err(e) => return println!("skipped: {e}"),
    };
    // Constants of the program: the shapes are legal.
    let scale = Scale::alpha_over_r(32.0, RANK).expect("a scale");
    let kron = KronOp::new(KronShape::kron(LAYER, A, RANK).expect("a shape"), scale);
    let lora = KronOp::new(KronShape::lora(LAYER, RANK).expect("a shape"), scale);
    for rows in ROWS {
        for kind in Kind::ALL {
            let op = if matches!(kind, Kind::LoraGemm | Kind::LoraFused) { lora } else { kron };
            let single = match Single::<bf16>::new(&mut bench, kind, &op, rows) {
                Ok(single) => single,
                Err(e) => {
                    println!("skipped: {} over {rows} rows: {e}", kind.name());
                    continue;
                }
            };
            for pass in TimedPasses::ALL {
                let mut group = c.benchmark_group(format!("{}/{}/{rows}", bf16::DTYPE, pass.name()));
                group.sample_size(10).warm_up_time(Duration::from_millis(20));
                group.measurement_time(Duration::from_millis(100));
                let bytes = LayerTask::Adapter(op).cost(pass, rows, bf16::DTYPE).bytes as u64;
                if kind != Kind::Linear && kind != Kind::MergePerStep {
                    group.throughput(Throughput::Bytes(bytes));
                }
                group.bench_function(BenchmarkId::from_parameter(kind.name()), |b| {
                    b.iter_custom(|times| single.time(&mut bench, pass, times).expect("the device runs it"));
                });
                group.finish();
            }
        }
    }
}

criterion_group!(benches, engines);
criterion_main!(benches);
