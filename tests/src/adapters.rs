//! Small adapters of every kind, by which the format is frozen, and the entry that reads any bytes.

use std::collections::BTreeMap;

use kron_adapter::{Adapter, Layer, ScaleRule, Scaling, TrainedTensor};
use kron_core::{KronShape, LayerDims, Split, Theta};

/// The folder of the valid files that a fuzzer starts from.
pub const SEEDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/adapter");

/// Reads any bytes as an adapter and checks what must hold whatever they are;
/// true when they are one. The fuzz target and its stand-in call this.
///
/// # Panics
/// Panics if reading or writing breaks a promise of the format.
pub fn read_any(bytes: &[u8]) -> bool {
    match Adapter::from_bytes(bytes) {
        Ok(adapter) => {
            let values = adapter.params() + adapter.trained_values();
            assert!(4 * values <= bytes.len(), "numbers out of nothing");
            let written = adapter.to_bytes().expect("what was read can be written");
            let again = Adapter::from_bytes(&written).expect("what was written can be read");
            assert_eq!(adapter, again);
            assert_eq!(written, again.to_bytes().expect("and written again"));
            true
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 2000, "{} bytes of message", message.len());
            assert!(!message.chars().any(char::is_control), "{message:?}");
            false
        }
    }
}

/// The files of `fuzz/seeds/adapter`, by name: one of each kind, one with a trained head, and one of all kinds.
pub fn seeds() -> Vec<(&'static str, Adapter)> {
    let kron = layer(
        "q",
        KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 3, a_in: 2 }, 1),
        Scaling::new(8.0, 1, ScaleRule::AlphaOverR),
    );
    let lora = layer(
        "k",
        KronShape::lora(LayerDims { d_out: 4, d_in: 3 }, 2),
        Scaling::new(0.1, 2, ScaleRule::AlphaOverR),
    );
    let root = layer(
        "v",
        KronShape::kron(LayerDims { d_out: 5, d_in: 7 }, Split { a_out: 1, a_in: 7 }, 3),
        Scaling::new(16.0, 3, ScaleRule::AlphaOverSqrtR),
    );
    let krona = layer(
        "o",
        KronShape::krona(LayerDims { d_out: 4, d_in: 9 }, Split { a_out: 2, a_in: 3 }),
        Scaling::plain(-0.5),
    );
    let mixed = ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "lm_head"]
        .into_iter()
        .zip([&kron, &krona, &lora])
        .map(|(module, l)| Layer::new(module, l.scaling(), l.theta().clone()).expect("a module's name"));
    let mixed = adapter(mixed.collect())
        .with_target_modules(vec!["q_proj".into(), "*.mlp.*".into(), "lm_head".into()])
        .and_then(|a| a.with_metadata(BTreeMap::from([("base_model".into(), "a \"small\" one\n".into())])))
        .expect("names and texts");
    // Names before and after the layer's, in an order that is not theirs.
    let head =
        [("head.weight", vec![3, 2]), ("gain", vec![]), ("head.bias", vec![3])].map(|(name, shape)| {
            let len = shape.iter().product::<usize>();
            let values = (0..len).map(|i| (i as f32 - 1.0) / 4.0).collect();
            TrainedTensor::new(name, shape, values).expect("a tensor")
        });
    let labels = BTreeMap::from([(Adapter::LABELS_KEY.into(), r#"["no","so \"so\"","yes"]"#.into())]);
    let head = adapter(vec![kron.clone()])
        .with_trained_tensors(head.into())
        .and_then(|a| a.with_metadata(labels))
        .expect("names of their own");
    let embedding = TrainedTensor::of_rows("embed.weight", vec![7, 2], 3, vec![0.25; 6]).expect("two rows");
    let bias = TrainedTensor::new("q.bias", [6], vec![-0.5; 6]).expect("a bias");
    let rows =
        adapter(vec![kron.clone()]).with_trained_tensors(vec![embedding, bias]).expect("other tensors");
    // A sum of two shapes, and a layer beside it.
    let second = layer(
        "q",
        KronShape::kron(LayerDims { d_out: 6, d_in: 10 }, Split { a_out: 2, a_in: 5 }, 2),
        Scaling::new(8.0, 2, ScaleRule::AlphaOverR),
    );
    let terms = adapter(vec![lora.clone(), kron.clone(), second.with_term(1)]);
    vec![
        ("kron", adapter(vec![kron])),
        ("lora", adapter(vec![lora])),
        ("rslora", adapter(vec![root])),
        ("krona", adapter(vec![krona])),
        ("head", head),
        ("rows", rows),
        ("terms", terms),
        ("mixed", mixed),
    ]
}

fn adapter(layers: Vec<Layer>) -> Adapter {
    Adapter::new(layers).expect("one layer of each module")
}

/// A layer whose numbers are 1/8, 2/8, 3/8 …, with every other sign.
fn layer(module: &str, shape: kron_core::Result<KronShape>, scaling: kron_adapter::Result<Scaling>) -> Layer {
    let shape = shape.expect("a legal shape");
    let number = |i: usize| (i as f32 + 1.0) / 8.0 * if i.is_multiple_of(2) { 1.0 } else { -1.0 };
    let theta = Theta::from_vec(shape, (0..shape.params()).map(number).collect()).expect("its length");
    Layer::new(module, scaling.expect("a scale"), theta).expect("a module's name")
}
