//! `kron merge` of a 1 GB bf16 model against `cp` of the same file, on the same disk.
//!
//! `cargo bench -p kron-cli --bench merge -- [FOLDER]`
//!
//! Linux only. The adapters are a Kron-LoRA, a LoRA and a DoRA, each on all linear layers. Like against
//! like: `kron merge` with `cp`, which leave the bytes to the system, and `kron merge --sync` with `cp` and
//! `sync`, which wait for the disk. The commands run in turn; medians, their ratios and the peak of resident
//! memory are printed, and a ratio above 2, for DoRA above 4, or a peak above the largest tensor and 200 MB
//! ends with exit code 1.
#![forbid(unsafe_code)]

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use half::bf16;
use kron_adapter::peft::{CONFIG, WEIGHTS};
use kron_adapter::{Adapter, IfExists, Layer, OutputFormat, ScaleRule, Scaling};
use kron_core::{KronShape, LayerDims, Split, Theta};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

/// Runs of each of the commands.
const ROUNDS: usize = 9;
const MAX_RATIO: f64 = 2.0;
/// DoRA also takes norms of the sums, and rescales them.
const MAX_DORA_RATIO: f64 = 4.0;
const RANK: usize = 8;
/// Bytes of memory beyond the largest tensor.
const MAX_MEMORY: u64 = 200 << 20;

/// Name and sizes of each weight: an embedding and two blocks of LLaMA-3-8B, 0.94 GB.
fn weights() -> Vec<(String, [usize; 2])> {
    let (hidden, kv, ffn) = (4096, 1024, 14336);
    let block = [
        ("self_attn.q_proj", [hidden, hidden]),
        ("self_attn.k_proj", [kv, hidden]),
        ("self_attn.v_proj", [kv, hidden]),
        ("self_attn.o_proj", [hidden, hidden]),
        ("mlp.gate_proj", [ffn, hidden]),
        ("mlp.up_proj", [ffn, hidden]),
        ("mlp.down_proj", [hidden, ffn]),
    ];
    let blocks =
        (0..2).flat_map(|i| block.map(|(name, sizes)| (format!("model.layers.{i}.{name}.weight"), sizes)));
    [("model.embed_tokens.weight".to_string(), [8000, hidden])].into_iter().chain(blocks).collect()
}

fn main() -> ExitCode {
    let folder = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .map_or(std::env::temp_dir(), PathBuf::from);
    let dir = tempfile::tempdir_in(folder).expect("a folder to write to");
    let [base, kron, lora, dora, copy, merged] =
        ["base", "kron", "lora", "dora", "copy", "merged"].map(|name| dir.path().join(name));
    let weights = weights();
    write_base(&base, &weights).expect("written");
    let split = |dims| KronShape::kron(dims, Split { a_out: 16, a_in: 2 }, RANK);
    adapter(&weights, split).write(&kron, IfExists::Refuse).expect("written");
    write_lora(&lora, &weights, false).expect("written");
    write_lora(&dora, &weights, true).expect("written");

    let cp = || timed(Command::new("cp").args([&base, &copy]));
    let flushed =
        || timed(Command::new("sh").args(["-c", "cp \"$0\" \"$1\" && sync \"$1\""]).args([&base, &copy]));
    let merge = |adapter: &Path, options: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kron"));
        timed(command.arg("merge").args([&base, adapter, &merged]).args(options))
    };
    let runs: [&dyn Fn() -> (Duration, u64); 6] =
        [&cp, &|| merge(&kron, &[]), &|| merge(&lora, &[]), &|| merge(&dora, &[]), &flushed, &|| {
            merge(&kron, &["--sync"])
        }];
    let mut times = [const { Vec::new() }; 6];
    let mut peak = 0;
    for _ in 0..ROUNDS {
        for (run, times) in runs.into_iter().zip(&mut times) {
            for path in [&copy, &merged] {
                let _ = std::fs::remove_file(path);
            }
            // Writes left over from another run must not slow this one.
            let _ = Command::new("sync").status();
            let (time, memory) = run();
            times.push(time);
            peak = peak.max(memory);
        }
    }
    let [cp, kron, lora, dora, flushed, durably] = times.map(median);
    let largest = weights.iter().map(|(_, [rows, columns])| 2 * rows * columns).max().unwrap_or(0) as u64;
    println!("{} bytes, medians of {ROUNDS}", base.metadata().map_or(0, |meta| meta.len()));
    let mut within = peak <= largest + MAX_MEMORY;
    for (what, merge, copy, most) in [
        ("kron merge, Kron-LoRA / cp", kron, cp, MAX_RATIO),
        ("kron merge, LoRA / cp", lora, cp, MAX_RATIO),
        ("kron merge, DoRA / cp", dora, cp, MAX_DORA_RATIO),
        ("kron merge --sync, Kron-LoRA / cp and sync", durably, flushed, MAX_RATIO),
    ] {
        let ratio = merge.as_secs_f64() / copy.as_secs_f64();
        within &= ratio <= most;
        println!("{what}: {merge:.2?} / {copy:.2?} = {ratio:.2}, at most {most}");
    }
    println!("peak memory: {} MB, at most {} MB", peak >> 20, (largest + MAX_MEMORY) >> 20);
    if within { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a command and returns its time and its peak of resident memory.
fn timed(command: &mut Command) -> (Duration, u64) {
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn().expect("a program that starts");
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    let watch = std::thread::spawn(move || {
        while let Ok(text) = std::fs::read_to_string(&status) {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let Some(line) = line else { break };
            let kilobytes = line.trim().strip_suffix(" kB").and_then(|n| n.parse::<u64>().ok());
            peak = peak.max(1024 * kilobytes.unwrap_or(0));
            std::thread::sleep(Duration::from_millis(5));
        }
        peak
    });
    let status = child.wait().expect("an end");
    let time = begun.elapsed();
    assert!(status.success(), "{command:?} fails");
    (time, watch.join().expect("a peak"))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn write_base(path: &Path, weights: &[(String, [usize; 2])]) -> std::io::Result<()> {
    let mut header = Map::new();
    let mut at = 0;
    for (name, [rows, columns]) in weights {
        let end = at + 2 * rows * columns;
        header.insert(
            name.clone(),
            json!({ "dtype": "BF16", "shape": [rows, columns], "data_offsets": [at, end] }),
        );
        at = end;
    }
    let header = serde_json::to_vec(&header)?;
    let mut out = BufWriter::new(std::fs::File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    // One megabyte of values, repeated: the time of a sum does not depend on its terms.
    let values =
        Theta::random(KronShape::lora(LayerDims { d_out: 1 << 19, d_in: 1 }, 1).expect("a legal shape"), 1);
    let values = values.b().iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect::<Vec<u8>>();
    while at > 0 {
        let len = at.min(values.len());
        out.write_all(&values[..len])?;
        at -= len;
    }
    out.into_inner().map_err(|e| e.into_error())?.sync_all()
}

/// Makes an adapter of all weights but the embedding.
fn adapter(
    weights: &[(String, [usize; 2])],
    shape: impl Fn(LayerDims) -> kron_core::Result<KronShape>,
) -> Adapter {
    let scaling = Scaling::new(16.0, RANK, ScaleRule::AlphaOverR).expect("a scale");
    let layers = weights.iter().skip(1).zip(1..).map(|((name, [rows, columns]), seed)| {
        let shape = shape(LayerDims { d_out: *rows, d_in: *columns }).expect("a legal shape");
        let module = name.strip_suffix(".weight").expect("a weight");
        Layer::new(module, scaling, Theta::random(shape, seed)).expect("a module's name")
    });
    Adapter::new(layers.collect()).expect("one layer of each module")
}

/// Writes a LoRA as a PEFT folder; for a DoRA, with a magnitude of each output.
fn write_lora(folder: &Path, weights: &[(String, [usize; 2])], is_dora: bool) -> std::io::Result<()> {
    let adapter = adapter(weights, |dims| KronShape::lora(dims, RANK));
    let format = OutputFormat::Lora(Default::default());
    kron_adapter::write(&adapter, format, folder, IfExists::Refuse).expect("written");
    if !is_dora {
        return Ok(());
    }
    let config = folder.join(CONFIG);
    let mut fields: Map<String, Value> = serde_json::from_slice(&std::fs::read(&config)?)?;
    fields.insert("use_dora".into(), true.into());
    std::fs::write(config, serde_json::to_vec(&fields)?)?;
    let file = folder.join(WEIGHTS);
    let bytes = std::fs::read(&file)?;
    let factors = SafeTensors::deserialize(&bytes).expect("what was written");
    let ones = |len: usize| 1f32.to_le_bytes().repeat(len);
    let magnitudes: Vec<_> = weights
        .iter()
        .skip(1)
        .map(|(name, [rows, _])| {
            let module = name.strip_suffix(".weight").expect("a weight");
            (format!("base_model.model.{module}.lora_magnitude_vector"), ones(*rows))
        })
        .collect();
    let views = magnitudes.iter().map(|(name, bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, vec![bytes.len() / 4], bytes);
        (name.clone(), view.expect("bytes that fit the shape"))
    });
    let all: Vec<_> = factors.tensors().into_iter().chain(views).collect();
    std::fs::write(file, safetensors::serialize(all, None).expect("a file"))
}
