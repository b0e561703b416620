//! The examples run, and give the results that they describe.

#[allow(dead_code)]
#[path = "../../examples/01_train.rs"]
mod train;

#[test]
fn training_converges_and_candle_agrees() {
    let folder = tempfile::tempdir().expect("a folder");
    let (losses, difference) = train::train(&folder.path().join("adapter.safetensors")).expect("it runs");
    assert!(losses[losses.len() - 1] < 0.2 * losses[0], "{losses:?}");
    assert!(difference < 1e-5, "{difference}");
}
