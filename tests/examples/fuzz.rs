//! Damaged files for every parser of adapters and models, for so many seconds, on stable Rust; each run has other ones.
//!
//! `cargo run -p kron-tests --example fuzz -- 60`

use std::process::ExitCode;

use kron_tests::mutate::mutate;
use kron_tests::structured::structured;
use kron_tests::{adapters, foreign, fuzz, gguf};
use rand::RngExt;

fn main() -> ExitCode {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let packed = foreign::seeds();
    let ours: Vec<Vec<u8>> =
        adapters::seeds().into_iter().map(|(_, adapter)| adapter.to_bytes().expect("finite")).collect();
    let (entries, factors) = gguf::lora_parts();
    let ggufs = [gguf::file(&gguf::llama_metadata(), &gguf::llama_tensors()), gguf::file(&entries, &factors)];
    fuzz::main_loop(
        |rng| match rng.random_range(0..6) {
            0 => ("adapter", mutate(&ours[rng.random_range(0..ours.len())], &ours[0], rng)),
            1 => ("gguf", mutate(&ggufs[rng.random_range(0..ggufs.len())], &ggufs[0], rng)),
            2 => ("cli", structured(rng)),
            _ => ("cli", foreign::damaged(&packed, rng)),
        },
        |kind, bytes| match kind {
            "adapter" => adapters::read_any(bytes),
            "gguf" => gguf::read_any(folder.path(), bytes),
            _ => foreign::read_any(folder.path(), bytes),
        },
    )
}
