//! Products of a language model's sizes under criterion: `cargo bench -p kron-candle`.
//!
//! A frozen weight in float32 and one of bf16 numbers, on one thread and on all. Where the processor has a matrix unit,
//! bf16 numbers take half the products.

use candle_core::Result;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kron_candle::{Accum, Threads, product};
use ndarray::Array2;

/// Rows, columns and inner dimension of q, gate and down of SmolLM2-135M, for 8 texts of 128 tokens.
const SIZES: [(usize, usize, usize); 3] = [(1024, 576, 576), (1024, 1536, 576), (1024, 576, 1536)];

fn matrix(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    let mut state = seed;
    Array2::from_shape_simple_fn((rows, columns), || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f32 / (1u64 << 30) as f32 - 1.0
    })
}

fn products(c: &mut Criterion) {
    for (m, n, k) in SIZES {
        let (x, float32) = (matrix(m, k, 1), matrix(n, k, 2));
        let bf16 = float32.mapv(|v| half::bf16::from_f32(v).to_f32());
        let mut group = c.benchmark_group(format!("{m}x{n}x{k}"));
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        for (name, w) in [("float32", &float32), ("bf16", &bf16)] {
            for threads in [Threads::One, Threads::All] {
                let mut y = Array2::zeros((m, n));
                let mut run =
                    || -> Result<()> { product(y.view_mut(), Accum::Replace, x.view(), w.t(), threads) };
                group.bench_function(BenchmarkId::new(name, format!("{threads:?}")), |b| {
                    b.iter(|| run().expect("the sizes fit"));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
