//! Wrap a layer, train it for three steps, save, load, merge.
//!
//!     cargo run -p kron-candle --example finetune

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Linear, VarBuilder, VarMap};
use kron_candle::{AdamW, DropoutKey, Gradients, IfExists, Inject, LayerDims, Split};
use kron_candle::{Dropout, KronShape, ScaleRule, Scaling};

fn main() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("kron-finetune-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let losses = finetune(&folder.join("adapter.safetensors"))?;
    println!("losses of three steps: {losses:?}");
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// The three losses.
pub fn finetune(file: &std::path::Path) -> Result<Vec<f32>> {
    // 1. A "pretrained" layer of 96 → 64, and data that another layer made.
    let (device, weights) = (Device::Cpu, VarMap::new());
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &device);
    let x = Tensor::randn(0f32, 1.0, (128, 96), &device)?;
    let target = x.matmul(&Tensor::randn(0f32, 0.1, (96, 64), &device)?)?;

    // 2. Every module called q_proj gets ΔW = (32/8)·A ⊗ (B·C), A 4 × 2, r 8.
    let inject = Inject::new(&["q_proj"], 1, |_, d_out, d_in| {
        Ok((
            KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 4, a_in: 2 }, 8)?,
            Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?,
        ))
    })?;
    let inject = inject.with_dropout(Dropout::new(0.05).map_err(candle_core::Error::wrap)?);
    let layer = inject.linear(96, 64, true, vb.pp("layer.0.q_proj"))?;
    let adapters = inject.finish()?;

    // 3. Three steps; the matrix stays, θ moves, B at four times the rate (LoRA+).
    let delta = &adapters.deltas()[0];
    let mut optimizer = AdamW::new(vec![delta.group(4.0, 0.0)?], Default::default())?;
    let mut losses = Vec::new();
    for step in 0..3 {
        let y = layer.forward(&x, Some(DropoutKey { seed: 1, offset: step }))?;
        let loss = candle_nn::loss::mse(&y, &target)?;
        let mut gradients = Gradients::new(&optimizer.vars());
        gradients.add(&loss.backward()?, 1.0)?;
        gradients.clip(1.0)?;
        optimizer.step(&gradients, 1e-2)?;
        losses.push(loss.to_scalar()?);
    }

    // 4. Save, load into the same model, merge: one plain layer with the same output.
    adapters.save(file, IfExists::Replace)?;
    let load = Inject::trained(kron_candle::load(file)?);
    let loaded = load.linear(96, 64, true, vb.pp("layer.0.q_proj"))?;
    let merged: Linear = loaded.merge()?;
    let (fused, plain) = (layer.forward(&x, None)?, candle_nn::Module::forward(&merged, &x)?);
    let apart = (fused - plain)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(apart < 1e-4, "the merged layer is {apart} away");
    Ok(losses)
}
