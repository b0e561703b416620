//! What an adapter adds to a training step: forward and backward through the
//! 36 linear layers of a MiniLM (6 blocks, 384 wide), in float32, on the CPU or on a
//! GPU; first whole layers, then adapters alone, added to an output that is there.
//!
//!     RAYON_NUM_THREADS=1 cargo run -p kron-candle --example step_time
//!     cargo run -p kron-candle --features cuda --example step_time -- 0
//!
//! Processor time over all threads (Linux), which a machine that does other
//! work too leaves nearly as it is, and time by the clock; rounds of all
//! engines take turns, and each engine's median round is shown.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{Device, Module, Result, Tensor, Var};
use candle_nn::Linear;
use kron_candle::{Delta, KronLinear, KronShape, LayerDims, ScaleRule, Scaling, Split};

const ROWS: usize = 256;
const ROUNDS: usize = 21;

/// A layer as one engine computes it.
type Engine = Box<dyn Fn(&Linear, usize) -> Result<Box<dyn Module>>>;
/// An adapter's shape for d_out and d_in.
type Rule = fn(usize, usize) -> kron_core::Result<KronShape>;

const ADAPTERS: [(&str, Rule); 3] = [
    ("LoRA-8", |o, i| KronShape::lora(LayerDims { d_out: o, d_in: i }, 8)),
    ("Kron-LoRA (2, 2) r 8", |o, i| {
        KronShape::kron(LayerDims { d_out: o, d_in: i }, Split { a_out: 2, a_in: 2 }, 8)
    }),
    ("Kron-LoRA (4, 4) r 8", |o, i| {
        KronShape::kron(LayerDims { d_out: o, d_in: i }, Split { a_out: 4, a_in: 4 }, 8)
    }),
];

fn main() -> Result<()> {
    let device = match std::env::args().nth(1) {
        None => Device::Cpu,
        Some(ordinal) => Device::new_cuda(ordinal.parse().map_err(candle_core::Error::wrap)?)?,
    };
    let mut engines: Vec<(String, Engine)> = Vec::new();
    for (place, alone) in [("", false), ("adapter alone: ", true)] {
        for (how, fused) in [("candle's autograd", false), ("fused", true)] {
            let of = |(name, rule)| (format!("{place}{name}, {how}"), engine(rule, fused, alone));
            engines.extend(ADAPTERS.map(of));
        }
    }
    engines.push(("adapter alone: none".into(), Box::new(|base, _| Ok(Box::new(There::beside(base)?)))));
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

/// Processor and clock seconds of every layer's forward and backward, with the gradient of its input.
fn step(model: &[Box<dyn Module>], bases: &[Linear]) -> Result<(f64, f64)> {
    let (clock, processor) = (Instant::now(), processor_seconds()?);
    for (layer, base) in model.iter().zip(bases) {
        let x = Var::ones((ROWS, base.weight().dim(1)?), candle_core::DType::F32, base.weight().device())?;
        let y = layer.forward(&x)?;
        // Without an adapter, the output that is there does not depend on x.
        let wanted = y.track_op();
        assert!(!wanted || y.sum_all()?.backward()?.get(&x).is_some());
    }
    // A GPU may still be at it.
    bases[0].weight().device().synchronize()?;
    Ok((processor_seconds()? - processor, clock.elapsed().as_secs_f64()))
}

/// What all threads of this process have used so far.
fn processor_seconds() -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok());
        nanoseconds += first.ok_or_else(|| candle_core::Error::msg("schedstat has no time"))?;
    }
    Ok(1e-9 * nanoseconds)
}

fn engine(rule: Rule, fused: bool, alone: bool) -> Engine {
    Box::new(move |base, i| {
        let (d_out, d_in) = base.weight().dims2()?;
        let shape = rule(d_out, d_in).map_err(candle_core::Error::wrap)?;
        let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR).map_err(candle_core::Error::wrap)?;
        let delta = Delta::new("m", shape, scaling, i as u64, base.weight().device())?;
        let delta = if fused { delta } else { delta.unfused() };
        Ok(Box::new(match alone {
            true => KronLinear::over(Arc::new(There::beside(base)?), delta),
            false => KronLinear::new(base.clone(), delta)?,
        }))
    })
}

/// A base that costs nothing: its output is there before it is asked.
struct There(Tensor);

impl There {
    fn beside(base: &Linear) -> Result<Self> {
        Ok(Self(Tensor::ones(
            (ROWS, base.weight().dim(0)?),
            candle_core::DType::F32,
            base.weight().device(),
        )?))
    }
}

impl Module for There {
    fn forward(&self, _: &Tensor) -> Result<Tensor> {
        Ok(self.0.clone())
    }
}
