//! Reads a PEFT folder, prints its contents, and writes it as one file of this
//! project and as a LoRA folder that any engine loads.
//!
//! ```text
//! cargo run -p kron-adapter --example 01_convert              a small adapter, made here
//! cargo run -p kron-adapter --example 01_convert -- FOLDER    yours
//! ```

use std::path::{Path, PathBuf};

use kron_adapter::algebra::Delta;
use kron_adapter::peft::LoraOptions;
use kron_adapter::{Adapter, Error, IfExists, Layer, Loaded, OutputFormat, Result, ScaleRule, Scaling};
use kron_core::{KronShape, LayerDims, Split, Theta};

fn main() -> Result<()> {
    convert(std::env::args_os().nth(1).map(PathBuf::from))
}

/// Converts a PEFT folder, or a small one made here.
pub fn convert(input: Option<PathBuf>) -> Result<()> {
    let temporary = tempfile::tempdir().map_err(|e| Error::io("the temporary folder", e))?;
    let input = match input {
        Some(folder) => folder,
        None => small_peft_folder(temporary.path())?,
    };
    let loaded = kron_adapter::read(&input)?;
    print(&loaded);
    loaded.check_writable()?;
    let adapter = &loaded.adapter;

    // Our file holds the same values, bit for bit.
    let ours = temporary.path().join("adapter.safetensors");
    kron_adapter::write(adapter, OutputFormat::Kron, &ours, IfExists::Refuse)?;
    let back = kron_adapter::read(&ours)?.adapter;
    assert_eq!(&back, adapter);

    // A LoRA holds the same ΔW: each product A_ij·B_pq is rounded once to float32.
    let lora = temporary.path().join("lora");
    kron_adapter::write(adapter, OutputFormat::Lora(LoraOptions::default()), &lora, IfExists::Refuse)?;
    let loras = kron_adapter::read(&lora)?.adapter;
    println!("\nas a LoRA:");
    for layer in adapter.layers() {
        let module = layer.module();
        let lora = loras.layer(module).ok_or_else(|| Error::data(format!("{module} is missing")))?;
        let distance = Delta::new(layer).relative_distance(&Delta::new(lora))?;
        println!("  {module}: {}, relative distance {distance:.1e}", lora.shape());
        // Below 1e-7 the distance is noise of its closed form.
        assert!(distance < 1e-6, "{module} changed by {distance:e}");
    }
    Ok(())
}

fn print(loaded: &Loaded) {
    let adapter = &loaded.adapter;
    println!("{} ({}), {} parameters", loaded.path, loaded.format, adapter.params());
    for layer in adapter.layers() {
        println!("  {}: {}, alpha/r = {}", layer.module(), layer.shape(), layer.scaling());
    }
    loaded.notes.iter().for_each(|note| println!("note: {note}"));
}

/// Makes a LoKr of two layers, so that the example needs no download.
fn small_peft_folder(parent: &Path) -> Result<PathBuf> {
    let scaling = Scaling::new(16.0, 2, ScaleRule::AlphaOverR)?;
    let split = Split { a_out: 4, a_in: 4 };
    let layer = |module: &str, d_out, seed| {
        let shape = KronShape::kron(LayerDims { d_out, d_in: 32 }, split, 2)?;
        Layer::new(module, scaling, Theta::random(shape, seed))
    };
    let layers =
        vec![layer("model.layers.0.self_attn.q_proj", 32, 1)?, layer("model.layers.0.mlp.up_proj", 64, 2)?];
    let folder = parent.join("lokr");
    kron_adapter::write(&Adapter::new(layers)?, OutputFormat::PeftLokr, &folder, IfExists::Refuse)?;
    Ok(folder)
}
