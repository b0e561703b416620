//! Train the adapter of one layer until it imitates another layer; save it, load it, merge it.
//!
//!     cargo run -p kron-candle --example 03_train

use std::path::Path;

use candle_core::{DType, Device, Module, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use kron_candle::{AdamW, DropoutKey, Gradients, IfExists, Inject, load};
use kron_candle::{Dropout, KronShape, ScaleRule, Scaling, Split};

/// Number of training steps.
const STEPS: u64 = 150;
/// Examples per step, in two micro-batches.
const BATCH: usize = 64;

fn main() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("kron-train-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let losses = train(&folder.join("adapter.safetensors"))?;
    for (step, loss) in losses.iter().enumerate().step_by(25) {
        println!("step {step}: loss {loss:.5}");
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Returns the loss of every step.
pub fn train(file: &Path) -> Result<Vec<f32>> {
    // 1. A "pretrained" layer of 96 → 64.
    let (device, weights) = (Device::Cpu, VarMap::new());
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &device);

    // 2. Every module called q_proj gets ΔW = (16/8)·A ⊗ (B·C): A is 4×2, r is 8.
    let rule = |_: &str, dims| {
        let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 8)?;
        Ok((shape, Scaling::new(16.0, 8, ScaleRule::AlphaOverR)?))
    };
    let inject = Inject::new(&["q_proj"], 1, rule)?;
    let inject = inject.with_dropout(Dropout::new(0.01).map_err(candle_core::Error::wrap)?);
    let layer = inject.linear(96, 64, true, vb.pp("layer.0.q_proj"))?;
    let adapters = inject.finish()?;

    // 3. Synthetic data: the outputs of the same layer with another adapter, which training has to find.
    let hidden = Inject::new(&["q_proj"], 2, rule)?;
    let teacher = hidden.linear(96, 64, true, vb.pp("layer.0.q_proj"))?;
    for theta in hidden.finish()?.vars() {
        theta.set(&Tensor::randn(0f32, 0.15, theta.dims(), &device)?)?;
    }

    // 4. The optimizer: θ is one variable; its factor B has four times the learning rate (LoRA+).
    let groups = adapters.deltas().iter().map(|delta| delta.group(4.0, 0.0)).collect::<Result<_>>()?;
    let mut optimizer = AdamW::new(groups, Default::default())?;

    // 5. The loop: gradients of two micro-batches are summed and clipped, the learning rate decays linearly.
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let (mut gradients, mut mean) = (Gradients::new(&optimizer.vars()), 0.0);
        for part in 0..2 {
            let x = Tensor::randn(0f32, 1.0, (BATCH / 2, 96), &device)?;
            let target = teacher.forward_with(&x, None)?.detach();
            let key = DropoutKey { seed: 1, offset: 2 * step + part };
            let loss = candle_nn::loss::mse(&layer.forward_with(&x, Some(key))?, &target)?;
            gradients.add(&loss.backward()?, 0.5)?;
            mean += 0.5 * loss.to_scalar::<f32>()?;
        }
        gradients.clip(1.0)?;
        optimizer.step(&gradients, 2e-2 * (1.0 - step as f64 / STEPS as f64))?;
        losses.push(mean);
    }
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < 0.2 * first, "the loss only fell from {first} to {last}");

    // 6. Save, load into the same model, merge: one plain layer with the same output.
    adapters.save(file, IfExists::Replace)?;
    let loaded = Inject::trained(load(file)?).linear(96, 64, true, vb.pp("layer.0.q_proj"))?;
    let x = Tensor::randn(0f32, 1.0, (5, 96), &device)?;
    let difference = (layer.forward_with(&x, None)? - loaded.merge()?.forward(&x)?)?;
    let difference = difference.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(difference < 1e-3, "the merged layer differs by {difference}");
    Ok(losses)
}
