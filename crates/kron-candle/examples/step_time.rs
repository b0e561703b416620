//! Time that an adapter adds to a training step.
//!
//! Measured are forward and backward passes through the 36 linear layers of a MiniLM (6 blocks, 384 wide), in float32,
//! on the CPU or a GPU: first whole layers, then adapters alone on a base that costs nothing.
//!
//!     RAYON_NUM_THREADS=1 cargo run -p kron-candle --example step_time
//!     cargo run -p kron-candle --features cuda --example step_time -- 0
//!
//! Printed are the processor time over all threads, which other load on the machine hardly changes, and the wall-clock
//! time. Only Linux reports processor time; elsewhere it is NaN. Rounds of all engines alternate, and the median
//! round of each engine is shown.

use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, Device, Layout, Module, Result, Tensor, Var};
use candle_nn::Linear;
use kron_candle::{
    FrozenLinear, KronLinear, KronShape, LayerDims, ScaleRule, Scaling, Split, TrainableDelta,
};

const ROWS: usize = 256;
const ROUNDS: usize = 21;

/// Constructor of a layer as one engine computes it.
type Engine = Box<dyn Fn(&Linear, usize) -> Result<Box<dyn Module>>>;
/// Shape of an adapter for a layer's dimensions.
type Rule = fn(LayerDims) -> kron_core::Result<KronShape>;

const ADAPTERS: [(&str, Rule); 3] = [
    ("LoRA-8", |dims| KronShape::lora(dims, 8)),
    ("Kron-LoRA (2, 2) r 8", |dims| KronShape::kron(dims, Split { a_out: 2, a_in: 2 }, 8)),
    ("Kron-LoRA (4, 4) r 8", |dims| KronShape::kron(dims, Split { a_out: 4, a_in: 4 }, 8)),
];

fn main() -> Result<()> {
    let device = match std::env::args().nth(1) {
        None => Device::Cpu,
        Some(ordinal) => Device::new_cuda(ordinal.parse().map_err(candle_core::Error::wrap)?)?,
    };
    let mut engines: Vec<(String, Engine)> = Vec::new();
    for (prefix, alone) in [("", false), ("adapter alone: ", true)] {
        for (how, fused) in [("candle's autograd", false), ("fused", true)] {
            let of = |(name, rule)| (format!("{prefix}{name}, {how}"), engine(rule, fused, alone));
            engines.extend(ADAPTERS.map(of));
        }
    }
    engines.push((
        "adapter alone: none".into(),
        Box::new(|base, _| Ok(Box::new(KronLinear::frozen(Arc::new(ReadyMade::like(base)?))))),
    ));
    let sizes = [(384, 384), (384, 384), (384, 384), (384, 384), (1536, 384), (384, 1536)];
    let bases = sizes
        .iter()
        .cycle()
        .take(36)
        .map(|&size| Ok(Linear::new(Tensor::randn(0f32, 0.05, size, &device)?, None)));
    let bases = bases.collect::<Result<Vec<_>>>()?;
    let models =
        engines.iter().map(|(_, make)| bases.iter().enumerate().map(|(i, base)| make(base, i)).collect());
    let models = models.collect::<Result<Vec<Vec<_>>>>()?;
    let mut times = vec![Vec::new(); engines.len()];
    for _ in 0..ROUNDS {
        for (times, model) in times.iter_mut().zip(&models) {
            times.push(step(model, &bases)?);
        }
    }
    println!("{ROWS} tokens, medians of {ROUNDS} rounds in ms: processor time, clock");
    for ((name, _), times) in engines.iter().zip(times) {
        let (processor, clock): (Vec<f64>, Vec<f64>) = times.into_iter().unzip();
        println!("{name:<55} {:>8.2} {:>8.2}", median(processor), median(clock));
    }
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    1000.0 * seconds[seconds.len() / 2]
}

/// Returns processor and wall-clock seconds of a forward and backward pass of every layer, including its input's gradient.
fn step(model: &[Box<dyn Module>], bases: &[Linear]) -> Result<(f64, f64)> {
    let (clock, processor) = (Instant::now(), processor_seconds());
    for (layer, base) in model.iter().zip(bases) {
        let x = Var::ones((ROWS, base.weight().dim(1)?), candle_core::DType::F32, base.weight().device())?;
        let y = layer.forward(&x)?;
        assert!(y.sum_all()?.backward()?.get(&x).is_some());
    }
    // A GPU may still be computing.
    bases[0].weight().device().synchronize()?;
    Ok((processor_seconds() - processor, clock.elapsed().as_secs_f64()))
}

/// Returns the processor seconds of all threads so far; NaN if the system does not report them.
fn processor_seconds() -> f64 {
    scheduled_nanoseconds().map_or(f64::NAN, |nanoseconds| 1e-9 * nanoseconds)
}

#[cfg(target_os = "linux")]
fn scheduled_nanoseconds() -> Option<f64> {
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    let times = threads.map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    });
    times.sum()
}

#[cfg(not(target_os = "linux"))]
fn scheduled_nanoseconds() -> Option<f64> {
    None
}

fn engine(rule: Rule, fused: bool, alone: bool) -> Engine {
    Box::new(move |base, i| {
        let (d_out, d_in) = base.weight().dims2()?;
        let shape = rule(LayerDims { d_out, d_in }).map_err(candle_core::Error::wrap)?;
        let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR).map_err(candle_core::Error::wrap)?;
        let delta = TrainableDelta::new("m", shape, scaling, i as u64, base.weight().device())?;
        let delta = if fused { delta } else { delta.unfused() };
        Ok(Box::new(match alone {
            true => KronLinear::over(Arc::new(ReadyMade::like(base)?), delta)?,
            false => KronLinear::new(base.clone(), delta)?,
        }))
    })
}

/// Base that multiplies nothing: y and dX are zeros.
#[derive(Debug)]
struct ReadyMade(LayerDims);

impl ReadyMade {
    fn like(base: &Linear) -> Result<Self> {
        let (d_out, d_in) = base.weight().dims2()?;
        Ok(Self(LayerDims { d_out, d_in }))
    }

    fn zeros<S: BackendStorage<Device: BackendDevice<Storage = S>>>(
        like: &S,
        layout: &Layout,
        from: usize,
        to: usize,
    ) -> Result<S> {
        like.device().zeros_impl(&(layout.shape().elem_count() / from, to).into(), like.dtype())
    }
}

impl FrozenLinear for ReadyMade {
    fn dims(&self) -> LayerDims {
        self.0
    }

    fn cpu_forward(&self, x: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        Self::zeros(x, layout, self.0.d_in, self.0.d_out)
    }

    fn cpu_backward(&self, dy: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        Self::zeros(dy, layout, self.0.d_out, self.0.d_in)
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, x: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        Self::zeros(x, layout, self.0.d_in, self.0.d_out)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, dy: &CudaStorage, layout: &Layout) -> Result<CudaStorage> {
        Self::zeros(dy, layout, self.0.d_out, self.0.d_in)
    }
}
