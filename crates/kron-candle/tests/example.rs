//! The example is run, and learns.

#[allow(dead_code)]
#[path = "../examples/finetune.rs"]
mod finetune;

#[test]
fn the_example_learns_saves_loads_and_merges() {
    let folder = tempfile::tempdir().expect("a folder");
    let losses = finetune::finetune(&folder.path().join("adapter.safetensors")).expect("it runs");
    assert!(losses.len() == 3 && losses[2] < losses[0], "{losses:?}");
}
