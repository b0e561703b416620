//! Writes the valid adapter files of `fuzz/seeds`, by which version 1 of the format is frozen.
//!
//! Only for a new version of the format: `cargo run -p kron-tests --example fuzz-seeds`.

use kron_core::Existing;

fn main() -> kron_core::Result<()> {
    for (name, adapter) in kron_tests::adapters::seeds() {
        let path = format!("{}/{name}.safetensors", kron_tests::adapters::SEEDS);
        adapter.write(&path, Existing::Replace)?;
        println!("{path}");
    }
    Ok(())
}
