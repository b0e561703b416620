//! Many adapters in one call, and several on one X, on layers of Mistral-7B:
//! `cargo bench -p kron-bench --bench many_adapters -- --help`. Every round times each engine once, one after the
//! other, so a ratio compares calls that ran within milliseconds of each other. Each call reads adapters, X and Y
//! that have left the cache. Results are compared before anything is timed.

use std::time::Instant;

use clap::Parser;
use half::bf16;
use kron_bench::convert::{add_into, widen};
use kron_bench::data::uniform;
use kron_bench::gemm::{GemmCrate, Mat, MatMut, product};
use kron_bench::models::{self, Layer};
use kron_bench::stats::median;
use kron_core::{
    Accum, AdapterGroup, AdapterPool, Backend, Backward, BackwardGroup, Cpu, Dtype, Element, Forward,
    ForwardGroup, ForwardSegments, GroupTerm, KronOp, KronShape, Pass, PoolEntry, Scale, Split, Theta,
};
use ndarray::{Array2, Axis, Slice};
use rayon::prelude::*;

const RANK: usize = 8;
/// The paper's outer factor for a hidden size of 4096.
const A: Split = Split { a_out: 16, a_in: 2 };

/// Elements of θ, and of X and Y, that a bank holds at least, so that what a call reads has left the cache.
const BANK: usize = 32 << 20;

/// Segments against a loop of single calls, LoRA's segments and two products per adapter; groups against single calls.
#[derive(Debug, Parser)]
struct Cli {
    /// Layers of Mistral-7B.
    #[arg(long, value_delimiter = ',', default_value = "q,kv,gate_up,down")]
    layers: Vec<String>,
    /// Activations: f32, bf16.
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16")]
    dtype: Vec<String>,
    /// Adapters of a call.
    #[arg(long, value_delimiter = ',', default_value = "1,16,256,1024")]
    adapters: Vec<usize>,
    /// Rows of each adapter.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    rows: Vec<usize>,
    /// Rows of the groups' calls; none skips the groups.
    #[arg(long, value_delimiter = ',', default_value = "256,2048")]
    group_rows: Vec<usize>,
    /// Rounds of each cell.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let cli = Cli::parse();
    let dtypes: Vec<Dtype> = cli.dtype.iter().map(|d| d.parse().expect("f32 or bf16")).collect();
    let model = models::models().iter().find(|model| model.name == "mistral-7b").expect("the default model");
    println!(
        "| layer | dtype | adapters × rows | segments | loop | LoRA-8 segments | LoRA-8 products | × loop | × LoRA-8 | of its bytes | × products |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for layer in model.layers.iter().filter(|layer| cli.layers.contains(&layer.name)) {
        for &dtype in &dtypes {
            match dtype {
                Dtype::F32 => segments::<f32>(&cli, layer),
                _ => segments::<bf16>(&cli, layer),
            }
        }
    }
    println!("\n| group | dtype | rows | group | calls | forward × | group, both passes | calls | × |");
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|");
    for (name, d_outs) in [("q,k,v", &[4096, 1024, 1024][..]), ("gate,up", &[14336, 14336])] {
        for (&dtype, &rows) in dtypes.iter().flat_map(|d| cli.group_rows.iter().map(move |r| (d, r))) {
            match dtype {
                Dtype::F32 => group::<f32>(&cli, name, d_outs, rows),
                _ => group::<bf16>(&cli, name, d_outs, rows),
            }
        }
    }
}

fn op(shape: kron_core::Result<KronShape>) -> KronOp {
    // Constants of the program: the shapes and the scale are legal.
    KronOp::new(shape.expect("a shape"), Scale::alpha_over_r(32.0, RANK).expect("a scale"))
}

/// Adapters of one shape, of which a call takes consecutive ones.
struct Bank {
    op: KronOp,
    thetas: Vec<Theta>,
    t: Vec<f32>,
    workspace: Vec<f32>,
}

impl Bank {
    fn new(op: KronOp, count: usize, rows: usize) -> Self {
        let thetas = (0..count as u64).into_par_iter().map(|seed| Theta::random(op.shape, seed)).collect();
        Self { op, thetas, t: vec![0.0; op.t_len(rows)], workspace: Vec::new() }
    }

    /// Seconds of one call over the rows of all adapters from `first` on.
    fn segments<E: Element>(&mut self, first: usize, batch: &mut Batch<E>) -> f64 {
        let cpu = Cpu::new();
        let entries: Vec<PoolEntry> = (self.thetas[first..][..batch.adapters].iter())
            .map(|theta| PoolEntry { op: self.op, theta: theta.as_slice() })
            .collect();
        let pool = AdapterPool::new(&entries).expect("one shape");
        let len = cpu.segments_workspace_len(&pool, Pass::Forward, batch.table.len());
        self.workspace.resize(len.max(self.workspace.len()), 0.0);
        let here = batch.here();
        let start = Instant::now();
        let call = ForwardSegments {
            x: batch.x.slice_axis(Axis(0), here),
            table: &batch.table,
            y: batch.y.slice_axis_mut(Axis(0), here),
            accum: batch.accum,
            t: &mut self.t,
            workspace: &mut self.workspace,
            dropout: None,
        };
        cpu.forward_segments(&pool, call).expect("buffers fit");
        start.elapsed().as_secs_f64()
    }

    /// Seconds of one call per adapter.
    fn one_by_one<E: Element>(&mut self, first: usize, batch: &mut Batch<E>) -> f64 {
        let (cpu, n) = (Cpu::new(), batch.rows);
        let len = cpu.workspace_len(&self.op, Pass::Forward, n);
        self.workspace.resize(len.max(self.workspace.len()), 0.0);
        let start = Instant::now();
        for (i, theta) in self.thetas[first..][..batch.adapters].iter().enumerate() {
            let rows = Slice::from(batch.first + i * n..batch.first + (i + 1) * n);
            let call = Forward {
                theta: theta.as_slice(),
                x: batch.x.slice_axis(Axis(0), rows),
                y: batch.y.slice_axis_mut(Axis(0), rows),
                accum: batch.accum,
                t: &mut self.t[self.op.t_len(i * n)..],
                workspace: &mut self.workspace[..],
                dropout: None,
            };
            cpu.forward(&self.op, call).expect("buffers fit");
        }
        start.elapsed().as_secs_f64()
    }

    /// Seconds of two products of the crate `gemm` per LoRA adapter, the adapters on all threads.
    fn products<E: Element>(&mut self, first: usize, batch: &mut Batch<E>) -> f64 {
        let (s, n, scale) = (self.op.shape, batch.rows, self.op.scale.get());
        let (d_out, d_in) = (s.d_out(), s.d_in());
        let wide = if E::DTYPE == Dtype::F32 { 0 } else { n * (d_in + d_out) };
        let each = wide + n * RANK;
        self.workspace.resize((batch.adapters * each).max(self.workspace.len()), 0.0);
        let rows = batch.first..batch.first + batch.adapters * n;
        let start = Instant::now();
        let (x, y) = (batch.x.as_slice().expect("whole"), batch.y.as_slice_mut().expect("whole"));
        self.thetas[first..][..batch.adapters]
            .par_iter()
            .zip(x[rows.start * d_in..rows.end * d_in].par_chunks(n * d_in))
            .zip(y[rows.start * d_out..rows.end * d_out].par_chunks_mut(n * d_out))
            .zip(self.workspace.par_chunks_mut(each))
            .for_each(|(((theta, x), y), scratch)| {
                let (t, wide) = scratch.split_at_mut(n * RANK);
                let (wide_x, wide_y) = wide.split_at_mut(if wide.is_empty() { 0 } else { n * d_in });
                let x = Mat::new(widen(x, wide_x), n, d_in);
                let c = Mat::new(theta.c(), RANK, d_in).t();
                product(GemmCrate::Gemm, 1, 1.0, x, c, Accum::Replace, MatMut::new(t, n, RANK));
                let (t, b) = (Mat::new(t, n, RANK), Mat::new(theta.b(), d_out, RANK).t());
                if E::DTYPE == Dtype::F32 {
                    let y = MatMut::new(bytemuck::cast_slice_mut(y), n, d_out);
                    return product(GemmCrate::Gemm, 1, scale, t, b, Accum::Add, y);
                }
                product(
                    GemmCrate::Gemm,
                    1,
                    scale,
                    t,
                    b,
                    Accum::Replace,
                    MatMut::new(&mut wide_y[..n * d_out], n, d_out),
                );
                add_into(y, &wide_y[..n * d_out], 1.0);
            });
        start.elapsed().as_secs_f64()
    }

    /// Bytes that a call moves: θ and X are read, Y is read and written.
    fn bytes<E: Element>(&self, rows: usize) -> f64 {
        let s = self.op.shape;
        (4 * s.params() + rows * (s.d_in() + 2 * s.d_out()) * E::DTYPE.size()) as f64
    }
}

/// Rows of the call of one round, sorted by adapter, inside a larger X and Y.
struct Batch<E> {
    x: Array2<E>,
    y: Array2<E>,
    table: Vec<i32>,
    adapters: usize,
    rows: usize,
    first: usize,
    accum: Accum,
}

impl<E: Element> Batch<E> {
    fn here(&self) -> Slice {
        Slice::from(self.first..self.first + self.table.len())
    }
}

fn segments<E: Element>(cli: &Cli, layer: &Layer) {
    let (dims, most) = (layer.dims(), cli.adapters.iter().copied().max().unwrap_or(1));
    let width = dims.d_in + dims.d_out;
    let calls_rows = most * cli.rows.iter().copied().max().unwrap_or(1);
    let all_rows = calls_rows.max(BANK / width);
    let (kron, lora) = (op(KronShape::kron(dims, A, RANK)), op(KronShape::lora(dims, RANK)));
    let count = |op: KronOp| most.max(BANK / op.shape.params());
    let mut kron = Bank::new(kron, count(kron), calls_rows);
    let mut lora = Bank::new(lora, count(lora), calls_rows);
    let (x, y) = (uniform::<E>(all_rows, dims.d_in, 1.0, 1), uniform::<E>(all_rows, dims.d_out, 1.0, 2));
    let (table, accum) = (Vec::new(), Accum::Add);
    let mut batch = Batch { x, y, table, adapters: 0, rows: 0, first: 0, accum };
    for (&adapters, &rows) in cli.adapters.iter().flat_map(|a| cli.rows.iter().map(move |r| (a, r))) {
        (batch.adapters, batch.rows, batch.first) = (adapters, rows, 0);
        batch.table = (0..adapters as i32).flat_map(|i| std::iter::repeat_n(i, rows)).collect();
        check(&mut kron, &mut lora, &mut batch);
        // Small calls are repeated until they fill a millisecond.
        let repeats = (512 / (adapters * rows)).max(1);
        let mut seconds = [const { Vec::new() }; 4];
        let (mut at, mut window) = (0, 0);
        for _ in 0..cli.rounds {
            for (engine, seconds) in seconds.iter_mut().enumerate() {
                let mut sum = 0.0;
                for _ in 0..repeats {
                    let bank = if engine < 2 { &mut kron } else { &mut lora };
                    let first = at % (bank.thetas.len() / adapters) * adapters;
                    batch.first = window % (all_rows / batch.table.len()) * batch.table.len();
                    (at, window) = (at + 1, window + 1);
                    sum += match engine {
                        0 | 2 => bank.segments(first, &mut batch),
                        1 => bank.one_by_one(first, &mut batch),
                        _ => bank.products(first, &mut batch),
                    };
                }
                seconds.push(sum / repeats as f64);
            }
        }
        let ratio =
            |k: usize| median(&seconds[k].iter().zip(&seconds[0]).map(|(a, b)| a / b).collect::<Vec<_>>());
        let [ours, looped, lora_segments, products] = seconds.each_ref().map(|s| micros(median(s)));
        println!(
            "| {} {}×{} | {} | {adapters} × {rows} | {ours} | {looped} | {lora_segments} | {products} | {:.2} | {:.2} | {:.2} | {:.2} |",
            layer.name,
            dims.d_out,
            dims.d_in,
            E::DTYPE,
            ratio(1),
            ratio(2),
            ratio(2) * kron.bytes::<E>(rows) / lora.bytes::<E>(rows),
            ratio(3),
        );
    }
}

fn micros(seconds: f64) -> String {
    format!("{:.1} µs", 1e6 * seconds)
}

/// Segments have the bits of the loop, and LoRA's products agree with LoRA's segments; the rows keep old values.
fn check<E: Element>(kron: &mut Bank, lora: &mut Bank, batch: &mut Batch<E>) {
    let run = |batch: &mut Batch<E>, call: &mut dyn FnMut(&mut Batch<E>) -> f64| {
        let here = batch.here();
        batch.y.slice_axis_mut(Axis(0), here).fill(E::from_f32(0.0));
        call(batch);
        batch.y.slice_axis(Axis(0), here).mapv(|v| f64::from(v.to_f32()))
    };
    let ours = run(batch, &mut |batch| kron.segments(0, batch));
    let looped = run(batch, &mut |batch| kron.one_by_one(0, batch));
    assert!(ours == looped, "segments differ from the loop");
    let ours = run(batch, &mut |batch| lora.segments(0, batch));
    let products = run(batch, &mut |batch| lora.products(0, batch));
    let norm = |m: &Array2<f64>| m.iter().map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&(&ours - &products)) / norm(&products);
    let bound = 4.0 * E::DTYPE.unit_roundoff().max(1e-6);
    assert!(error < bound, "LoRA's segments are {error:.1e} from its products, more than {bound:.1e}");
}

/// X, dX, and Y and dY of each output.
struct Set<E> {
    x: Array2<E>,
    dx: Array2<E>,
    ys: Vec<Array2<E>>,
    dys: Vec<Array2<E>>,
}

fn group<E: Element>(cli: &Cli, name: &str, d_outs: &[usize], rows: usize) {
    let (cpu, d_in) = (Cpu::new(), 4096);
    let op_of = |&d_out: &usize| op(KronShape::kron(kron_core::LayerDims { d_out, d_in }, A, RANK));
    let ops: Vec<KronOp> = d_outs.iter().map(op_of).collect();
    let thetas: Vec<Theta> = (0..).zip(&ops).map(|(seed, op)| Theta::random(op.shape, seed)).collect();
    let term =
        |(output, (&op, theta))| GroupTerm { op, theta: Theta::as_slice(theta), output, dropout: None };
    let terms: Vec<GroupTerm<&[f32]>> = ops.iter().zip(&thetas).enumerate().map(term).collect();
    let group = AdapterGroup::new(&terms).expect("legal");
    let both = [Pass::Forward, Pass::Backward { dx: true }];
    let len = both.map(|pass| cpu.group_workspace_len(&group, pass, rows));
    let mut workspace = vec![0.0f32; len[0].max(len[1])];
    let mut t = vec![0.0f32; group.t_len(rows)];
    let mut grads: Vec<Vec<f32>> = ops.iter().map(|op| vec![0.0; op.shape.params()]).collect();
    let matrices = |seed| d_outs.iter().map(|&d_out| uniform::<E>(rows, d_out, 1.0, seed)).collect();
    let width = 2 * d_in + 2 * d_outs.iter().sum::<usize>();
    let mut sets: Vec<Set<E>> = (0..(BANK / (rows * width)).max(2) as u64)
        .map(|seed| Set {
            x: uniform(rows, d_in, 1.0, 4 * seed),
            dx: uniform(rows, d_in, 1.0, 4 * seed + 1),
            ys: matrices(4 * seed + 2),
            dys: matrices(4 * seed + 3),
        })
        .collect();
    let mut seconds = [const { Vec::new() }; 4];
    let mut at = 0;
    for _ in 0..cli.rounds {
        for grouped in [true, false] {
            let count = sets.len();
            let Set { x, dx, ys, dys } = &mut sets[at % count];
            at += 1;
            let start = Instant::now();
            if grouped {
                let mut ys: Vec<_> = ys.iter_mut().map(|y| (y.view_mut(), Accum::Add)).collect();
                let call = ForwardGroup { x: x.view(), ys: &mut ys, t: &mut t, workspace: &mut workspace };
                cpu.forward_group(&group, call).expect("buffers fit");
            } else {
                let mut t = &mut t[..];
                for ((op, theta), y) in ops.iter().zip(&thetas).zip(ys) {
                    let t = t.split_off_mut(..op.t_len(rows)).expect("T of all terms");
                    let (theta, x, y) = (theta.as_slice(), x.view(), y.view_mut());
                    let (accum, workspace, dropout) = (Accum::Add, &mut workspace[..], None);
                    let call = Forward { theta, x, y, accum, t, workspace, dropout };
                    cpu.forward(op, call).expect("buffers fit");
                }
            }
            let forward = start.elapsed().as_secs_f64();
            if grouped {
                let dys: Vec<_> = dys.iter().map(|dy| dy.view()).collect();
                let call = BackwardGroup {
                    x: x.view(),
                    t: &t,
                    dys: &dys,
                    dx: Some((dx.view_mut(), Accum::Add)),
                    grads: &mut grads.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>(),
                    workspace: &mut workspace,
                };
                cpu.backward_group(&group, call).expect("buffers fit");
            } else {
                let mut t = &t[..];
                for (((op, theta), dy), grad) in ops.iter().zip(&thetas).zip(&*dys).zip(&mut grads) {
                    let grad = &mut grad[..];
                    let t = t.split_off(..op.t_len(rows)).expect("T of all terms");
                    let (theta, x, dy, dx) =
                        (theta.as_slice(), x.view(), dy.view(), Some((dx.view_mut(), Accum::Add)));
                    let (workspace, dropout) = (&mut workspace[..], None);
                    let call = Backward { theta, x, t, dy, dx, grad, workspace, dropout };
                    cpu.backward(op, call).expect("buffers fit");
                }
            }
            let first = 2 * usize::from(!grouped);
            seconds[first].push(forward);
            seconds[first + 1].push(start.elapsed().as_secs_f64());
        }
    }
    let ratio =
        |k: usize| median(&seconds[k + 2].iter().zip(&seconds[k]).map(|(a, b)| a / b).collect::<Vec<_>>());
    let [group, group_both, calls, calls_both] = seconds.each_ref().map(|s| micros(median(s)));
    println!(
        "| {name} | {} | {rows} | {group} | {calls} | {:.2} | {group_both} | {calls_both} | {:.2} |",
        E::DTYPE,
        ratio(0),
        ratio(1),
    );
}
