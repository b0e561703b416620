//! Every engine of `kron-bench` under criterion, on one layer of Mistral-7B:
//! `cargo bench -p kron-bench`. For a development loop on one engine; the checked,
//! interleaved comparison is `kron-bench` itself.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use kron_bench::data::{Set, uniform};
use kron_bench::engine::EngineConfig;
use kron_bench::engines::{self, Kind};
use kron_bench::problem::TimedPasses;
use kron_core::{Cpu, Element, KronOp, KronShape, LayerDims, Scale, Split, Theta};

/// k_proj and v_proj of Mistral-7B: flat enough for the dense engines to finish.
const LAYER: LayerDims = LayerDims { d_out: 1024, d_in: 4096 };
const ROWS: [usize; 2] = [1, 256];
const RANK: usize = 8;
/// The paper's outer factor for a hidden size of 4096.
const A: Split = Split { a_out: 16, a_in: 2 };

fn dtype<E: Element>(c: &mut Criterion) {
    let threads = rayon::current_num_threads();
    // Constants of the program: the shapes are legal.
    let scale = Scale::alpha_over_r(32.0, RANK).expect("a scale");
    let kron = KronOp::new(KronShape::kron(LAYER, A, RANK).expect("a shape"), scale);
    let lora = KronOp::new(KronShape::lora(LAYER, RANK).expect("a shape"), scale);
    let weight = Arc::new(uniform::<E>(LAYER.d_out, LAYER.d_in, 0.03, 1));
    for rows in ROWS {
        for pass in TimedPasses::ALL {
            let mut group = c.benchmark_group(format!("{}/{}/{rows}", E::DTYPE, pass.name()));
            group
                .sample_size(10)
                .warm_up_time(Duration::from_millis(300))
                .measurement_time(Duration::from_secs(1));
            for kind in Kind::ALL {
                let problem = kind.problem(kron, lora);
                let theta = problem.shape().map(|s| Theta::random(s, 7));
                let weight = Some(weight.clone());
                let config = EngineConfig { rows, threads, cpu: Cpu::new(), weight };
                let t_len = problem.op().map_or(0, |op| op.t_len(rows));
                let mut set = Set::<E>::random(rows, LAYER, t_len, 3);
                let choice =
                    engines::choose(kind, &problem, theta.as_ref(), &config, &mut set).expect("a choice");
                let mut engine = engines::build(kind, choice, &problem, theta.as_ref(), &config);
                group.throughput(Throughput::Bytes(problem.cost(pass, rows, E::DTYPE).bytes as u64));
                group.bench_function(BenchmarkId::from_parameter(kind.name()), |b| {
                    b.iter(|| {
                        engine.forward(&mut set).expect("buffers fit");
                        if pass == TimedPasses::Both {
                            engine.backward(&mut set).expect("buffers fit");
                        }
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, dtype::<f32>, dtype::<bf16>);
criterion_main!(benches);
