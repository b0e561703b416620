//! What an adapter adds to a training step: forward and backward through the
//! 36 linear layers of a MiniLM (6 blocks, 384 wide), in float32 on the CPU.
//!
//!     RAYON_NUM_THREADS=1 cargo run --release -p kron-candle --example step_time
//!
//! What counts is processor time over all threads (Linux), which a machine that
//! does other work too leaves nearly as it is; rounds of all engines take turns,
//! and each engine's cheapest round is shown.

use candle_core::{Device, Module, Result, Tensor, Var};
use candle_nn::Linear;
use kron_candle::{Delta, KronLinear, KronShape, ScaleRule, Scaling};

const ROWS: usize = 256;
const ROUNDS: usize = 6;

/// A layer as one engine computes it.
type Engine = Box<dyn Fn(&Linear, usize) -> Result<Box<dyn Module>>>;

fn main() -> Result<()> {
    let engines: [(&str, Engine); 5] = [
        ("frozen base, fused op of rank 1", fused(|o, i| KronShape::lora(o, i, 1))),
        ("LoRA-8, candle's autograd", Box::new(autograd)),
        ("LoRA-8, fused", fused(|o, i| KronShape::lora(o, i, 8))),
        ("Kron-LoRA (2, 2) r 8, fused", fused(|o, i| KronShape::kron(o, i, 2, 2, 8))),
        ("Kron-LoRA (4, 4) r 8, fused", fused(|o, i| KronShape::kron(o, i, 4, 4, 8))),
    ];
    let sizes = [(384, 384), (384, 384), (384, 384), (384, 384), (1536, 384), (384, 1536)];
    let bases = sizes
        .iter()
        .cycle()
        .take(36)
        .map(|&size| Ok(Linear::new(Tensor::randn(0f32, 0.05, size, &Device::Cpu)?, None)));
    let bases = bases.collect::<Result<Vec<_>>>()?;
    let models =
        engines.iter().map(|(_, make)| bases.iter().enumerate().map(|(i, base)| make(base, i)).collect());
    let models = models.collect::<Result<Vec<Vec<_>>>>()?;
    let mut cheapest = vec![f64::INFINITY; engines.len()];
    for _ in 0..ROUNDS {
        for (cheapest, model) in cheapest.iter_mut().zip(&models) {
            *cheapest = cheapest.min(step(model, &bases)?);
        }
    }
    println!("{ROWS} tokens, {ROUNDS} rounds, processor ms of the cheapest");
    for ((name, _), seconds) in engines.iter().zip(cheapest) {
        println!("{name:<34} {:>8.1}", 1000.0 * seconds);
    }
    Ok(())
}

/// Processor seconds of every layer's forward and backward, with the gradient of its input.
fn step(model: &[Box<dyn Module>], bases: &[Linear]) -> Result<f64> {
    let begin = processor_seconds()?;
    for (layer, base) in model.iter().zip(bases) {
        let x = Var::ones((ROWS, base.weight().dim(1)?), candle_core::DType::F32, &Device::Cpu)?;
        let gradients = layer.forward(&x)?.sum_all()?.backward()?;
        assert!(gradients.get(&x).is_some());
    }
    Ok(processor_seconds()? - begin)
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

fn fused(shape: fn(usize, usize) -> kron_core::Result<KronShape>) -> Engine {
    Box::new(move |base, i| {
        let (d_out, d_in) = base.weight().dims2()?;
        let shape = shape(d_out, d_in).map_err(candle_core::Error::wrap)?;
        let scaling = Scaling::new(32.0, 8, ScaleRule::AlphaOverR).map_err(candle_core::Error::wrap)?;
        Ok(Box::new(KronLinear::new(base.clone(), Delta::new("m", shape, scaling, i as u64, &Device::Cpu)?)?))
    })
}

/// LoRA as candle's users write it: two more products through autograd, over a frozen base.
struct Autograd {
    base: Linear,
    down: Var,
    up: Var,
}

fn autograd(base: &Linear, _: usize) -> Result<Box<dyn Module>> {
    let (d_out, d_in) = base.weight().dims2()?;
    let down = Var::randn(0f32, 0.05, (8, d_in), &Device::Cpu)?;
    let up = Var::zeros((d_out, 8), candle_core::DType::F32, &Device::Cpu)?;
    Ok(Box::new(Autograd { base: base.clone(), down, up }))
}

impl Module for Autograd {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let added = (x.matmul(&self.down.t()?)?.matmul(&self.up.t()?)? * 4.0)?;
        self.base.forward(x)? + added
    }
}
