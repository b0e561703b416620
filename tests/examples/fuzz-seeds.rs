//! Writes the valid files of `fuzz/seeds`: the adapters by which the versions of the format
//! are frozen, and packed files of others.
//!
//! Only for a new version or a new kind: `cargo run -p kron-tests --example fuzz-seeds`.

use kron_adapter::IfExists;
use kron_adapter::io::write_atomic;
use kron_tests::{adapters, foreign};

fn main() -> kron_adapter::Result<()> {
    for (name, adapter) in adapters::seeds() {
        let path = format!("{}/{name}.safetensors", adapters::SEEDS);
        adapter.write(&path, IfExists::Replace)?;
        println!("{path}");
    }
    for (name, bytes) in foreign::seeds() {
        let path = format!("{}/{name}", foreign::SEEDS);
        write_atomic(path.as_ref(), IfExists::Replace, |to| to.write_all(&bytes))?;
        println!("{path}");
    }
    Ok(())
}
