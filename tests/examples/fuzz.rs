//! Damaged files for every parser, for so many seconds, on stable Rust; each run has other ones.
//!
//! `cargo run -p kron-tests --example fuzz -- 60`
//!
//! An input that breaks a parser is saved, and its file name is printed with the panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use kron_tests::mutate::mutate;
use kron_tests::structured::structured;
use kron_tests::{adapters, foreign, gguf};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

fn main() -> ExitCode {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok());
    let Some(seconds) = seconds.map(Duration::from_secs) else {
        eprintln!("usage: fuzz SECONDS");
        return ExitCode::from(2);
    };
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos());
    let mut rng = Pcg64Mcg::seed_from_u64(seed as u64);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let packed = foreign::seeds();
    let ours: Vec<Vec<u8>> =
        adapters::seeds().into_iter().map(|(_, adapter)| adapter.to_bytes().expect("finite")).collect();

    let (entries, factors) = gguf::lora_parts();
    let ggufs = [gguf::file(&gguf::llama_metadata(), &gguf::llama_tensors()), gguf::file(&entries, &factors)];

    let (begun, mut read, mut refused) = (Instant::now(), 0u64, 0u64);
    while begun.elapsed() < seconds {
        let (kind, bytes) = match rng.random_range(0..6) {
            0 => ("adapter", mutate(&ours[rng.random_range(0..ours.len())], &ours[0], &mut rng)),
            1 => ("gguf", mutate(&ggufs[rng.random_range(0..ggufs.len())], &ggufs[0], &mut rng)),
            2 => ("cli", structured(&mut rng)),
            _ => ("cli", foreign::damaged(&packed, &mut rng)),
        };
        let done = catch_unwind(AssertUnwindSafe(|| match kind {
            "adapter" => adapters::read_any(&bytes),
            "gguf" => gguf::read_any(folder.path(), &bytes),
            _ => foreign::read_any(folder.path(), &bytes),
        }));
        match done {
            Ok(true) => read += 1,
            Ok(false) => refused += 1,
            Err(_) => {
                let path = std::env::temp_dir().join(format!("kron-fuzz-{kind}-{seed}"));
                std::fs::write(&path, &bytes).expect("a place for what was found");
                eprintln!("{} breaks a parser; the target is {kind}", path.display());
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{read} read, {refused} refused in {} s", begun.elapsed().as_secs());
    ExitCode::SUCCESS
}
