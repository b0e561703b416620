//! Put adapters on the layers of a small model by name, save them, and load them again.
//!
//!     cargo run -p kron-candle --example 02_inject

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use kron_candle::{
    Adapter, IfExists, Inject, KronLinear, KronShape, LoraOptions, OutputFormat, ScaleRule, Scaling, Split,
    load,
};

fn main() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("kron-inject-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let adapter = inject(&folder)?;
    for layer in adapter.layers() {
        println!("{}: {}", layer.module(), layer.shape());
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// Two blocks of a residual feed-forward network.
struct Model {
    blocks: Vec<(KronLinear, KronLinear)>,
}

impl Model {
    /// Makes every linear layer through `inject`, which decides by the builder's prefix.
    fn new(inject: &Inject, vb: VarBuilder) -> Result<Self> {
        let block = |i: usize| {
            let vb = vb.pp(format!("blocks.{i}"));
            Ok((inject.linear(32, 64, true, vb.pp("up"))?, inject.linear(64, 32, true, vb.pp("down"))?))
        };
        Ok(Self { blocks: (0..2).map(block).collect::<Result<_>>()? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (up, down) in &self.blocks {
            x = (&x + down.forward_with(&up.forward_with(&x, None)?.relu()?, None)?)?;
        }
        Ok(x)
    }
}

/// Returns the adapter as it was loaded from `folder`.
pub fn inject(folder: &Path) -> Result<Adapter> {
    // 1. "Pretrained" weights; a real model reads them from safetensors files.
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
    let plain = Model::new(&Inject::nothing(), vb.clone())?;

    // 2. Every module called `up` gets Kron-LoRA: A is 4×2, r is 4, s = 8/4.
    let inject = Inject::new(&["up"], 1, |_, dims| {
        let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 4)?;
        Ok((shape, Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?))
    })?;
    let model = Model::new(&inject, vb.clone())?;
    let adapters = inject.finish()?; // fails if a pattern matches no module
    assert_eq!(adapters.params(), 2 * (4 * 2 + 4 * (16 + 16)));

    // 3. Training changes the variables in `adapters.vars()`; here they are scaled and shifted instead.
    for theta in adapters.vars() {
        theta.set(&theta.affine(1.0, 0.05)?)?;
    }
    let x = Tensor::randn(0f32, 1.0, (3, 32), &Device::Cpu)?;
    let y = model.forward(&x)?;
    assert!(difference(&y, &plain.forward(&x)?)? > 0.0);

    // 4. Save our own file, bit for bit, and a PEFT folder with a LoRA of the same ΔW, rounded once.
    let (file, peft) = (folder.join("adapter.safetensors"), folder.join("peft"));
    adapters.save(&file, IfExists::Refuse)?;
    adapters.save_as(&peft, OutputFormat::Lora(LoraOptions::default()), IfExists::Refuse)?;

    // 5. Load either into the same model.
    for (path, tolerance) in [(&file, 0.0), (&peft, 1e-4)] {
        let inject = Inject::trained(load(path)?);
        let loaded = Model::new(&inject, vb.clone())?;
        inject.finish()?; // fails if the model lacks a layer of the adapter
        assert!(difference(&loaded.forward(&x)?, &y)? <= tolerance);
    }
    load(&file)
}

fn difference(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a - b)?.abs()?.max_all()?.to_scalar()
}
