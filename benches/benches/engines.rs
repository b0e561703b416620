//! Every engine of `kron-bench` under criterion, on one layer of Mistral-7B:
//! `cargo bench -p kron-bench`. For a development loop on one engine; the
//! comparison itself, checked and interleaved, is `kron-bench`.

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use kron_bench::data::{Set, uniform};
use kron_bench::engines::{self, Ingredients, Kind};
use kron_bench::problem::{Pass, Problem};
use kron_core::{Cpu, Element, KronOp, KronShape, LayerDims, Scale, Split, Theta};

/// k_proj and v_proj of Mistral-7B: flat enough for the dense engines to finish.
const LAYER: (usize, usize) = (1024, 4096);
const ROWS: [usize; 2] = [1, 256];
const RANK: usize = 8;
/// The paper's outer factor for a hidden size of 4096.
const OUTER: (usize, usize) = (16, 2);

fn dtype<E: Element>(c: &mut Criterion) {
    let (d_out, d_in) = LAYER;
    let threads = rayon::current_num_threads();
    // Constants of the program: the shapes are legal.
    let scale = Scale::alpha_over_r(32.0, RANK).expect("a scale");
    let kron = KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: OUTER.0, a_in: OUTER.1 }, RANK)
        .expect("a shape");
    let lora = KronShape::lora(LayerDims { d_out, d_in }, RANK).expect("a shape");
    let weight = Arc::new(uniform::<E>(d_out, d_in, 0.03, 1));
    for rows in ROWS {
        for pass in Pass::ALL {
            let mut group = c.benchmark_group(format!("{}/{}/{rows}", E::DTYPE, pass.name()));
            group
                .sample_size(10)
                .warm_up_time(Duration::from_millis(300))
                .measurement_time(Duration::from_secs(1));
            for kind in Kind::ALL {
                let problem = match kind {
                    Kind::Linear => Problem::Linear { d_out, d_in },
                    Kind::LoraGemm | Kind::LoraFused => Problem::Adapter(KronOp::new(lora, scale)),
                    Kind::MergePerStep => Problem::Merge(KronOp::new(kron, scale)),
                    _ => Problem::Adapter(KronOp::new(kron, scale)),
                };
                let theta = problem.shape().map(|s| Theta::random(s, 7));
                let from = Ingredients { rows, threads, cpu: Cpu::new(), weight: Some(weight.clone()) };
                let t_len = problem.op().map_or(0, |op| op.t_len(rows));
                let mut set = Set::<E>::random(rows, d_out, d_in, t_len, 3);
                let choice =
                    engines::choose(kind, &problem, theta.as_ref(), &from, &mut set).expect("a choice");
                let mut engine = engines::build(kind, choice, &problem, theta.as_ref(), &from);
                group.throughput(Throughput::Bytes(problem.cost(pass, rows, E::DTYPE).bytes as u64));
                group.bench_function(BenchmarkId::from_parameter(kind.name()), |b| {
                    b.iter(|| {
                        engine.forward(&mut set).expect("buffers fit");
                        if pass == Pass::Both {
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
