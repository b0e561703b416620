//! Errors of other crates keep their kind within candle's.

use std::io::ErrorKind;

use candle_core::{DType, Device, Error, Tensor};
use candle_nn::Linear;
use kron_adapter::Kind;
use kron_candle::{IfExists, Inject, KronShape, LayerDims, Method, ScaleRule, Scaling, Split, adapter_error};

/// Returns the kind of the error of the system that candle's error is or has the form of.
fn io_kind(error: &Error) -> ErrorKind {
    match error {
        Error::Io(error) => error.kind(),
        Error::WithBacktrace { inner, .. } => io_kind(inner),
        other => panic!("{other} is not an error of a file"),
    }
}

fn linear() -> Linear {
    Linear::new(Tensor::zeros((64, 96), DType::F32, &Device::Cpu).expect("zeros"), None)
}

#[test]
fn files_fail_with_the_kind_of_their_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let missing = kron_candle::load(at("none.safetensors")).expect_err("missing");
    assert_eq!(io_kind(&missing), ErrorKind::NotFound);
    assert_eq!(
        adapter_error(&missing).expect("ours").to_string(),
        missing.to_string().lines().next().unwrap_or("")
    );

    std::fs::write(at("damaged.safetensors"), [7; 100]).expect("written");
    let damaged = kron_candle::load(at("damaged.safetensors")).expect_err("damaged");
    assert_eq!(io_kind(&damaged), ErrorKind::InvalidData);
    assert_eq!(adapter_error(&damaged).expect("ours").kind(), Kind::Data);

    let inject = Inject::of_method(&["q"], 1, Method::Lora { rank: 4 }, 8.0).expect("a pattern");
    inject.wrap(linear(), "0.q").expect("a layer");
    let adapters = inject.finish().expect("an adapter");
    adapters.save(at("taken"), IfExists::Refuse).expect("a free name");
    let taken = adapters.save(at("taken"), IfExists::Refuse).expect_err("taken");
    assert_eq!(io_kind(&taken), ErrorKind::AlreadyExists);
    // It is found behind what candle puts around it.
    assert!(adapter_error(&taken.context("saving").with_path("there")).is_some());
}

#[test]
fn a_shape_rule_s_error_names_the_module_and_keeps_its_kind() {
    let inject = Inject::new(&["q"], 1, |_, dims: LayerDims| {
        let shape = KronShape::kron(dims, Split { a_out: 5, a_in: 2 }, 4)?;
        Ok((shape, Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?))
    });
    let error = inject.expect("a pattern").wrap(linear(), "0.q").expect_err("5 does not divide 64");
    assert_eq!(io_kind(&error), ErrorKind::InvalidData);
    assert!(adapter_error(&error).expect("ours").message().starts_with("0.q: a_out = 5"), "{error}");
    let own = Inject::nothing()
        .wrap(linear(), "0.q")
        .and_then(|layer| layer.forward_with(&Tensor::zeros((2, 95), DType::F32, &Device::Cpu)?, None));
    assert!(adapter_error(&own.expect_err("95 of 96 columns")).is_none());
    assert!(adapter_error(&Error::from(std::io::Error::from(ErrorKind::NotFound))).is_none());
}
