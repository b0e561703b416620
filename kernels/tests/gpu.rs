//! What the driver's side promises on any machine, with or without a device.
#![cfg(feature = "cuda")]

#[path = "../../tests/src/say.rs"]
mod say;

use kron_kernels::{Error, Gpu};
use say::say;

#[test]
fn a_missing_device_is_an_error_and_never_a_panic() {
    let error = Gpu::new(1 << 20).expect_err("no machine has that many devices");
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    match Gpu::count() {
        Ok(count) => say(format_args!("{count} CUDA devices")),
        Err(Error::Unavailable(message)) => say(format_args!("skipped: {message}")),
        Err(other) => panic!("{other}"),
    }
}
