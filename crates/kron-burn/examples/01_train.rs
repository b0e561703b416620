//! Trains an adapter in burn, saves it, reads it in kron-candle on the same base, and merges it.
//!
//! ```sh
//! cargo run --release -p kron-burn --example 01_train
//! ```

use std::error::Error;
use std::path::Path;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Tensor};
use kron_burn::{
    Adapter, IfExists, Kron, KronForward, KronShape, Layer, LayerDims, ScaleRule, Scaling, Split, Theta,
};

/// The model: two layers, of which `up` is adapted.
#[derive(Module, Debug)]
pub struct Mlp {
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        Self { up: LinearConfig::new(96, 64).init(device), down: LinearConfig::new(64, 8).init(device) }
    }

    /// Layers compute by `forward_kron`; those without an adapter compute their own forward.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.down.forward_kron(burn::tensor::activation::tanh(self.up.forward_kron(x)))
    }
}

/// Trains and saves; returns the losses, and the largest difference between burn's merged layer and candle's.
pub fn train(file: &Path) -> Result<(Vec<f32>, f32), Box<dyn Error>> {
    let device = Device::flex().autodiff();
    device.seed(1);
    let base = Mlp::new(&device);
    let rule = |_: &str, dims: LayerDims| {
        let shape = KronShape::kron(dims, Split { a_out: 4, a_in: 2 }, 4)?;
        Ok((shape, Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?))
    };
    // The target is the same model with another adapter.
    let (shape, scaling) = rule("up", LayerDims { d_out: 64, d_in: 96 })?;
    let other = Adapter::new(vec![Layer::new("up", scaling, Theta::random(shape, 3))?])?;
    let x = Tensor::<2>::random([256, 96], Distribution::Normal(0.0, 1.0), &device);
    let target = Kron::trained(other).attach(base.clone())?.0.forward(x.clone()).detach();

    let (mut model, adapters) = Kron::new(&["up"], 7, rule)?.attach(base)?;
    let mut optimizer = AdamConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..150 {
        let error = model.forward(x.clone()) - target.clone();
        let loss = (error.clone() * error).mean();
        losses.push(loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-2, model, gradients);
    }
    adapters.save(&model, file, IfExists::Refuse)?;

    // The merged model has plain weights and burn's own forward.
    let merged = model.valid().materialize();
    let x = x.inner().narrow(0, 0, 4);
    let from_burn: Vec<f32> = merged.up.forward(x.clone()).into_data().try_to_vec()?;

    // candle's weight is d_out × d_in.
    let weight: Vec<f32> = model.up.weight.base().transpose().into_data().try_to_vec()?;
    let bias: Vec<f32> = model.up.bias.as_ref().expect("a bias").val().into_data().try_to_vec()?;
    let tensor = |values, shape: (usize, usize)| {
        candle_core::Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
    };
    let bias = tensor(bias, (1, 64))?.flatten_all()?;
    let layer = candle_nn::Linear::new(tensor(weight, (64, 96))?, Some(bias));
    let layer = kron_candle::Inject::trained(kron_candle::load(file)?).wrap(layer, "up")?;
    let y = layer.forward_with(&tensor(x.into_data().try_to_vec()?, (4, 96))?, None)?;
    let from_candle: Vec<f32> = y.flatten_all()?.to_vec1()?;
    let differences = from_burn.iter().zip(&from_candle).map(|(a, b)| (a - b).abs());
    Ok((losses, differences.fold(0.0, f32::max)))
}

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::temp_dir().join(format!("kron-burn-{}.safetensors", std::process::id()));
    let (losses, difference) = train(&file)?;
    println!("loss {:.5} → {:.5}", losses[0], losses[losses.len() - 1]);
    println!("{} read in candle: y differs from burn's merged layer by {difference:.1e}", file.display());
    assert!(losses[losses.len() - 1] < losses[0] && difference < 1e-5);
    std::fs::remove_file(&file)?;
    Ok(())
}
