//! The examples run, and give the results that they describe.

#[allow(dead_code)]
#[path = "../examples/02_inject.rs"]
mod inject;
#[allow(dead_code)]
#[path = "../examples/01_linear.rs"]
mod linear;
#[allow(dead_code)]
#[path = "../examples/04_serve.rs"]
mod serve;
#[allow(dead_code)]
#[path = "../examples/03_train.rs"]
mod train;

#[test]
fn the_adapted_layer_has_a_gradient() {
    let (params, plain, norm) = linear::linear().expect("it runs");
    assert_eq!((params, plain), (4 * 2 + 8 * (16 + 48), 64 * 96));
    assert!(norm.is_finite() && norm > 0.0, "{norm}");
}

#[test]
fn adapters_are_injected_saved_and_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let adapter = inject::inject(folder.path()).expect("it runs");
    let modules: Vec<&str> = adapter.layers().iter().map(|layer| layer.module()).collect();
    assert_eq!(modules, ["blocks.0.up", "blocks.1.up"]);
}

#[test]
fn training_converges_saves_loads_and_merges() {
    let folder = tempfile::tempdir().expect("a folder");
    let losses = train::train(&folder.path().join("adapter.safetensors")).expect("it runs");
    assert!(losses.len() == 150 && losses[149] < 0.2 * losses[0], "{losses:?}");
}

#[test]
fn a_batch_has_the_tokens_of_one_adapter_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let stats = serve::serve(folder.path()).expect("it runs");
    // 600 users are in both batches; the pool has places for 900.
    assert_eq!((stats.hits, stats.misses, stats.evictions, stats.adapters), (600, 1000, 100, 900));
}
