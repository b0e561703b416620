//! PEFT adapters in a candle model, and our adapters as PEFT folders.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Error, Result, Tensor};
use candle_nn::VarBuilder;
use kron_adapter::algebra::Delta;
use kron_candle::{IfExists, Inject, KronLinear, LoraOptions, OutputFormat, TrainedTensor, load};
use kron_core::reference;
use ndarray::Array2;

/// Folder with a base model of two layers, four PEFT adapters, and PEFT's outputs with each.
fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/model_llama")
}

fn base() -> Result<VarBuilder<'static>> {
    let tensors = candle_core::safetensors::load(golden().join("base.safetensors"), &Device::Cpu)?;
    Ok(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
}

/// Lists the linear layers of the model: path, d_in, d_out.
fn linears() -> Vec<(String, usize, usize)> {
    let linears = [
        ("self_attn.q_proj", 48, 48),
        ("self_attn.k_proj", 48, 24),
        ("self_attn.v_proj", 48, 24),
        ("self_attn.o_proj", 48, 48),
        ("mlp.gate_proj", 48, 96),
        ("mlp.up_proj", 48, 96),
        ("mlp.down_proj", 96, 48),
    ];
    let of_layer = |i| linears.map(|(name, d_in, d_out)| (format!("model.layers.{i}.{name}"), d_in, d_out));
    (0..2).flat_map(of_layer).collect()
}

fn model(inject: &Inject, vb: &VarBuilder) -> Result<Vec<(String, KronLinear)>> {
    let made = linears().into_iter().map(|(path, d_in, d_out)| {
        let linear = inject.linear(d_in, d_out, false, vb.pp(&path))?;
        Ok((path, linear))
    });
    made.collect()
}

fn wide(tensor: &Tensor) -> Result<Array2<f64>> {
    let rows = tensor.flatten_to(tensor.rank() - 2)?;
    let values = rows.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?;
    Ok(Array2::from_shape_vec(rows.dims2()?, values).expect("values of a matrix"))
}

fn norm(m: &Array2<f64>) -> f64 {
    m.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// The bound is that of the golden files: twice the framework's own rounding error in float32.
#[test]
fn peft_folders_compute_what_peft_computed() -> Result<()> {
    let outputs = candle_core::safetensors::load(golden().join("outputs.safetensors"), &Device::Cpu)?;
    let vb = base()?;
    for name in ["lokr", "lokr_mix", "lora", "lora_rs"] {
        let adapter = load(golden().join(name))?;
        let inject = Inject::trained(adapter.clone());
        let made = model(&inject, &vb)?;
        assert_eq!(inject.finish()?.deltas().len(), adapter.layers().len(), "{name}");
        let mut adapted = 0;
        for (path, linear) in made.iter().filter(|(_, linear)| !linear.deltas().is_empty()) {
            let [x, peft] = ["x", "y"].map(|end| &outputs[&format!("{name}.act.{path}.{end}")]);
            let layer = adapter.layer(path).expect("the layer of this path");
            let w = wide(&vb.get((layer.shape().d_out(), layer.shape().d_in()), &format!("{path}.weight"))?)?;
            let delta = reference::forward(&layer.op(), layer.theta(), wide(x)?.view());
            let reference = wide(x)?.dot(&w.t()) + &delta;
            let (ours, peft) = (wide(&linear.forward_with(x, None)?)? - &reference, wide(peft)? - &reference);
            assert!(norm(&delta) > 0.01 * norm(&reference), "{name}, {path}: the adapter does nothing");
            let bound = 2.0 * norm(&peft).max(f64::from(f32::EPSILON) * norm(&reference));
            assert!(norm(&ours) <= bound, "{name}, {path}: {:e} of {bound:e}", norm(&ours));
            adapted += 1;
        }
        assert_eq!(adapted, adapter.layers().len(), "{name}");
    }
    Ok(())
}

#[test]
fn a_peft_folder_comes_back_to_the_bit() -> Result<()> {
    let (vb, folder) = (base()?, tempfile::tempdir()?);
    let bias = TrainedTensor::new("classifier.bias", [2], vec![0.5, -1.5]).expect("a tensor");
    let lokr = load(golden().join("lokr"))?.with_trained_tensors(vec![bias]).expect("no layer of that name");
    let inject = Inject::trained(lokr);
    model(&inject, &vb)?;
    let adapters = inject.finish()?;
    // Stands for training.
    for delta in adapters.deltas() {
        delta.theta().set(&(delta.theta().as_tensor() * 1.1)?)?;
    }
    let out = folder.path().join("lokr");
    adapters.save_as(&out, OutputFormat::PeftLokr, IfExists::Refuse)?;
    let (saved, read) = (adapters.to_adapter()?, load(&out)?);
    assert_eq!(saved.layers().len(), read.layers().len());
    for layer in saved.layers() {
        assert_eq!(read.layer(layer.module()).map(|l| l.theta()), Some(layer.theta()), "{}", layer.module());
    }
    assert_eq!((read.metadata(), read.metadata().is_empty()), (saved.metadata(), false));
    assert_eq!((read.trained_tensors(), read.trained_values()), (saved.trained_tensors(), 2));

    // As a LoRA, ΔW is the same and the factors differ.
    let taken = adapters.save_as(&out, OutputFormat::Lora(LoraOptions::default()), IfExists::Refuse);
    assert!(taken.expect_err("the folder is there").to_string().contains("exists"));
    adapters.save_as(&out, OutputFormat::Lora(LoraOptions::default()), IfExists::Replace)?;
    let inject = Inject::trained(load(&out)?);
    model(&inject, &vb)?;
    let lora_deltas = inject.finish()?;
    assert_ne!(lora_deltas.params(), adapters.params());
    let lora = lora_deltas.to_adapter()?;
    for layer in saved.layers() {
        let other = lora.layer(layer.module()).expect("a LoRA for each layer");
        let distance = Delta::new(layer).relative_distance(&Delta::new(other));
        assert!(distance.map_err(Error::wrap)? < f64::from(f32::EPSILON), "{}", layer.module());
    }
    Ok(())
}

#[test]
fn a_folder_for_another_model_is_refused_by_name() -> Result<()> {
    let inject = Inject::trained(load(golden().join("lokr"))?);
    // The model lacks some layers of the adapter.
    for (path, d_in, d_out) in linears().into_iter().filter(|(path, ..)| !path.contains("layers.1.mlp")) {
        inject.linear(d_in, d_out, false, base()?.pp(&path))?;
    }
    let refused = inject.finish().expect_err("two modules are missing").to_string();
    assert!(refused.contains("no linear layer model.layers.1.mlp"), "{refused}");

    let (from, to) = (golden().join("lora"), tempfile::tempdir()?);
    std::fs::copy(from.join("adapter_model.safetensors"), to.path().join("adapter_model.safetensors"))?;
    let config = std::fs::read_to_string(from.join("adapter_config.json"))?;
    let transposed = config.replace("\"fan_in_fan_out\": false", "\"fan_in_fan_out\": true");
    assert_ne!(config, transposed);
    std::fs::write(to.path().join("adapter_config.json"), transposed)?;
    let transposed = load(to.path()).expect_err("an adapter cannot represent it").to_string();
    assert!(transposed.contains("fan_in_fan_out is true"), "{transposed}");

    let nowhere = load(golden().join("nowhere")).expect_err("no folder").to_string();
    assert!(nowhere.contains("nowhere"), "{nowhere}");
    Ok(())
}
