//! Time of interactive commands.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kron_core::{KronShape, LayerDims, Split};

use crate::adapters::{ours, scaling};
use crate::golden::golden;
use crate::models::run;

/// Limit of one command: 100 ms in the release build. The dev profile optimises this program little and its
/// dependencies not at all, and other tests keep the cores busy. Its limit is ten times as long, so that a
/// busy machine does not fail the test.
const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 100 });

/// Takes the best of some runs, as a busy machine slows single runs.
#[test]
fn plan_and_inspect_answer_at_once() {
    let path = |name: &str| golden().join("model_llama").join(name);
    let word = PathBuf::from;
    let dir = tempfile::tempdir().unwrap();
    for call in [
        vec![word("plan"), word("mistral-7b")],
        vec![word("plan"), word("llama-3-8b"), word("--budget"), word("5.7M")],
        vec![word("plan"), word("--paper")],
        vec![word("plan"), word("--config"), path("config.json")],
        vec![word("inspect"), path("lokr")],
        vec![word("inspect"), path("lokr_mix")],
        vec![word("inspect"), path("lora")],
        vec![word("inspect"), mistral_7b(dir.path())],
    ] {
        let times = (0..5).map(|_| {
            let begun = Instant::now();
            let (code, _, err) = run(&call);
            assert_eq!(code, 0, "{err}");
            begun.elapsed()
        });
        let best = times.min().unwrap();
        assert!(best < LIMIT, "{call:?} takes {best:?}");
    }
}

/// Writes an adapter of rank 8 for the 224 linear layers in Mistral-7B's blocks, 22 MB.
fn mistral_7b(dir: &Path) -> PathBuf {
    let kinds = [
        ("self_attn.q_proj", 4096, 4096),
        ("self_attn.k_proj", 1024, 4096),
        ("self_attn.v_proj", 1024, 4096),
        ("self_attn.o_proj", 4096, 4096),
        ("mlp.gate_proj", 14_336, 4096),
        ("mlp.up_proj", 14_336, 4096),
        ("mlp.down_proj", 4096, 14_336),
    ];
    let names: Vec<_> = (0..32)
        .flat_map(|block| {
            kinds.map(|(name, d_out, d_in)| (format!("model.layers.{block}.{name}"), d_out, d_in))
        })
        .collect();
    let shape =
        |d_out, d_in| KronShape::kron(LayerDims { d_out, d_in }, Split { a_out: 16, a_in: 2 }, 8).unwrap();
    let layers: Vec<_> =
        names.iter().map(|(name, d_out, d_in)| (&name[..], shape(*d_out, *d_in), scaling(16.0, 8))).collect();
    let path = dir.join("mistral.safetensors");
    assert_eq!(ours(&layers, &path).layers().len(), 224);
    path
}
