//! The adapter file: exact both ways, refused when wrong, written whole or not at all.

use std::collections::BTreeMap;

use kron_adapter::kron_file::MAX_HEADER;
use kron_adapter::{Adapter, IfExists, Layer, ScaleRule, Scaling, TrainedTensor};
use kron_core::{Inner, KronShape, LayerDims, Outer, Split, Theta};
use kron_tests::adapters::{SEEDS, read_any, seeds};
use kron_tests::hostile::{Parts, hostile};
use kron_tests::mutate::mutate;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// A finite float32 of any bits: subnormal, −0, the largest.
fn any_finite() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |v| v.is_finite())
}

fn any_shape() -> impl Strategy<Value = KronShape> {
    let sides = (1usize..5, 1usize..5, 1usize..7, 1usize..7);
    (sides, any::<bool>(), 0usize..4).prop_map(|((a_out, a_in, b_out, c_in), one, rank)| {
        let (outer, a_out, a_in) = if one { (Outer::One, 1, 1) } else { (Outer::Trained, a_out, a_in) };
        let inner = if rank == 0 { Inner::Full } else { Inner::LowRank(rank) };
        KronShape::new(
            LayerDims { d_out: a_out * b_out, d_in: a_in * c_in },
            Split { a_out, a_in },
            outer,
            inner,
        )
        .unwrap()
    })
}

fn any_scaling() -> impl Strategy<Value = Scaling> {
    let rule = prop_oneof![Just(ScaleRule::AlphaOverR), Just(ScaleRule::AlphaOverSqrtR)];
    (any_finite(), 1usize..100, rule).prop_map(|(alpha, rank, rule)| Scaling::new(alpha, rank, rule).unwrap())
}

fn any_layer() -> impl Strategy<Value = Layer> {
    let theta = any_shape().prop_flat_map(|shape| {
        vec(any_finite(), shape.params()).prop_map(move |data| Theta::from_vec(shape, data).unwrap())
    });
    (any_scaling(), theta, any::<u64>())
        .prop_map(|(scaling, theta, n)| Layer::new(format!("blocks.{n}.to-q_0"), scaling, theta).unwrap())
}

fn any_trained() -> impl Strategy<Value = TrainedTensor> {
    (vec(1usize..4, 0..4), any::<u64>()).prop_flat_map(|(shape, n)| {
        let values = vec(any_finite(), shape.iter().product::<usize>());
        values.prop_map(move |values| TrainedTensor::new(format!("head.{n}"), &shape[..], values).unwrap())
    })
}

fn any_adapter() -> impl Strategy<Value = Adapter> {
    let trained = btree_map(any::<u8>(), any_trained(), 0..3);
    let targets = vec("\\PC{1,20}", 0..4);
    let metadata = btree_map(any::<String>(), any::<String>(), 0..4);
    (vec(any_layer(), 1..5), targets, metadata, trained).prop_map(|(layers, targets, metadata, trained)| {
        // Two equal names are one layer.
        let layers: BTreeMap<_, _> = layers.into_iter().map(|l| (l.module().to_string(), l)).collect();
        let adapter = Adapter::new(layers.into_values().collect()).unwrap();
        let adapter = adapter.with_target_modules(targets).unwrap().with_metadata(metadata).unwrap();
        let trained: BTreeMap<_, _> = trained.into_values().map(|t| (t.name().to_string(), t)).collect();
        adapter.with_trained_tensors(trained.into_values().rev().collect()).unwrap()
    })
}

/// Equality that tells −0 from 0.
fn assert_same(left: &Adapter, right: &Adapter) {
    assert_eq!(left, right);
    for (l, r) in left.layers().iter().zip(right.layers()) {
        let bits = |l: &Layer| {
            let theta = l.theta().as_slice().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            (theta, l.scaling().alpha().to_bits(), l.scaling().scale().get().to_bits())
        };
        assert_eq!(bits(l), bits(r), "{}", l.module());
    }
    for (l, r) in left.trained_tensors().iter().zip(right.trained_tensors()) {
        let bits = |t: &TrainedTensor| t.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(l), bits(r), "{}", l.name());
    }
}

proptest! {
    #[test]
    fn round_trip_is_exact_to_the_bit(adapter in any_adapter()) {
        let bytes = adapter.to_bytes().unwrap();
        let back = Adapter::from_bytes(&bytes).unwrap();
        assert_same(&adapter, &back);
        assert_eq!(bytes, back.to_bytes().unwrap(), "equal adapters, equal bytes");
    }

    #[test]
    fn every_truncation_is_refused(adapter in any_adapter(), cut in any::<prop::sample::Index>()) {
        let bytes = adapter.to_bytes().unwrap();
        assert!(!read_any(&bytes[..cut.index(bytes.len())]));
    }

    #[test]
    fn no_damage_makes_it_panic(
        adapter in any_adapter(),
        places in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = adapter.to_bytes().unwrap();
        for (place, byte) in places {
            let at = place.index(bytes.len());
            bytes[at] = byte;
        }
        read_any(&bytes);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..300), header in "\\PC{0,200}") {
        read_any(&bytes);
        read_any(&Parts { header, data: bytes }.join());
    }
}

#[test]
fn the_file_is_read_back_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    for (name, adapter) in seeds() {
        adapter.write(&path, IfExists::Replace).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), adapter.to_bytes().unwrap(), "{name}");
        assert_same(&adapter, &Adapter::read(&path).unwrap());
    }
}

/// The order on disk is θ's, and every factor is a matrix with its name to any other reader.
#[test]
fn the_data_are_the_thetas_and_the_tensors_are_the_factors() {
    for (name, adapter) in seeds() {
        let bytes = adapter.to_bytes().unwrap();
        let thetas = adapter.layers().iter().flat_map(|l| l.theta().as_slice());
        let trained = adapter.trained_tensors().iter().flat_map(|t| t.values());
        let expected: Vec<u8> = thetas.chain(trained).flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(Parts::of(&bytes).data, expected, "{name}");
        assert_eq!((bytes.len() - expected.len()) % 8, 0, "{name}: the data are not aligned");

        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut count = 0;
        for layer in adapter.layers() {
            let (shape, theta) = (layer.shape(), layer.theta());
            let [a_out, a_in, b_out, c_in] = [shape.a_out(), shape.a_in(), shape.b_out(), shape.c_in()];
            let a = (shape.outer() == Outer::Trained).then_some(("a", [a_out, a_in], theta.a()));
            let inner = match shape.inner() {
                Inner::LowRank(r) => vec![("b", [b_out, r], theta.b()), ("c", [r, c_in], theta.c())],
                Inner::Full => vec![("m", [b_out, c_in], theta.c())],
            };
            for (letter, dims, numbers) in a.into_iter().chain(inner) {
                let term = if layer.term() == 0 { String::new() } else { layer.term().to_string() };
                let tensor = file.tensor(&format!("{}.kron{term}_{letter}", layer.module())).unwrap();
                let bytes: Vec<u8> = numbers.iter().flat_map(|v| v.to_le_bytes()).collect();
                assert_eq!((tensor.shape(), tensor.data()), (&dims[..], &bytes[..]), "{name}");
                count += 1;
            }
        }
        for trained in adapter.trained_tensors() {
            let tensor = file.tensor(trained.name()).unwrap();
            let bytes: Vec<u8> = trained.values().iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!((tensor.shape(), tensor.data()), (trained.shape(), &bytes[..]), "{name}");
            count += 1;
        }
        assert_eq!(file.len(), count, "{name}");
    }
}

/// Other writers sort the tensors by name; the layers keep the order of the document.
#[test]
fn tensors_sorted_by_name_are_read_as_well() {
    for (_, adapter) in
        seeds().into_iter().filter(|(name, _)| ["mixed", "head", "rows", "terms"].contains(name))
    {
        let bytes = adapter.to_bytes().unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors: Vec<(&str, TensorView)> = file.iter().collect();
        let sorted = safetensors::serialize(tensors, header.metadata().clone()).unwrap();
        assert_ne!(Parts::of(&sorted).data, Parts::of(&bytes).data, "the order should differ");
        assert_same(&adapter, &Adapter::from_bytes(&sorted).unwrap());
    }
}

/// `python.safetensors` is what `save_file` of safetensors.numpy 0.8.0 makes of
/// the tensors and the metadata of `mixed.safetensors`.
#[test]
fn a_file_from_python_is_read_as_well() {
    let (_, adapter) = seeds().pop().unwrap();
    assert_same(&adapter, &Adapter::read(format!("{SEEDS}/python.safetensors")).unwrap());
}

/// Versions do not change: files of today are read tomorrow, and written alike.
#[test]
fn the_versions_are_frozen() {
    for (name, adapter) in seeds() {
        let bytes = std::fs::read(format!("{SEEDS}/{name}.safetensors")).unwrap();
        assert_same(&adapter, &Adapter::from_bytes(&bytes).unwrap());
        assert!(bytes == adapter.to_bytes().unwrap(), "{name}: the bytes that are written have changed");
        // A reader of an earlier version reads every adapter without later fields, and refuses the others by the version.
        let tensors = adapter.trained_tensors();
        let version = match tensors.is_empty() {
            _ if adapter.modules() < adapter.layers().len() => 4,
            true => 1,
            false if tensors.iter().any(|tensor| tensor.rows().is_some()) => 3,
            false => 2,
        };
        let header = Parts::of(&bytes).header;
        assert!(header.contains(&format!(r#"{{\"version\":{version},"#)), "{name}: {header}");
    }
}

#[test]
fn the_example_of_the_description_is_a_file() {
    let description = include_str!("../../docs/FORMAT.md");
    let json = description.split("```json\n").nth(1).and_then(|rest| rest.split("\n```").next()).unwrap();
    let example: serde_json::Value = serde_json::from_str(json).unwrap();
    let (_, adapter) = seeds().remove(0);
    let mut header: serde_json::Value =
        serde_json::from_str(&Parts::of(&adapter.to_bytes().unwrap()).header).unwrap();
    // The description shows the document inside the metadata as JSON, not as a text of JSON.
    let own = &mut header["__metadata__"][Adapter::RESERVED_KEY];
    *own = serde_json::from_str(own.as_str().unwrap()).unwrap();
    assert_eq!(example, header);
}

#[test]
fn every_hostile_file_is_refused_with_its_reason() {
    let cases = hostile();
    for case in &cases {
        let message = match Adapter::from_bytes(&case.bytes) {
            Ok(_) => panic!("{} was read", case.name),
            Err(error) => error.to_string(),
        };
        assert!(message.contains(case.says), "{}: {message}", case.name);
        read_any(&case.bytes);
    }
    let names: std::collections::HashSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases share a name");
}

/// The fuzz target's entry on thousands of damaged files, the same ones every time.
#[test]
fn seeded_damage_never_panics() {
    let mut valid: Vec<Vec<u8>> = std::fs::read_dir(SEEDS)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    valid.sort();
    assert!(valid.iter().filter(|bytes| read_any(bytes)).count() >= seeds().len());
    let hostile: Vec<_> = hostile().into_iter().map(|case| case.bytes).filter(|b| b.len() < 10_000).collect();

    let mut rng = Pcg64Mcg::seed_from_u64(1);
    let (mut read, mut refused) = (0, 0);
    for round in 0..20_000 {
        let (files, others) = if round % 4 == 0 { (&hostile, &valid) } else { (&valid, &hostile) };
        let (file, other) = (rng.random_range(0..files.len()), rng.random_range(0..others.len()));
        match read_any(&mutate(&files[file], &others[other], &mut rng)) {
            true => read += 1,
            false => refused += 1,
        }
    }
    // Damage to numbers and texts is not seen, all other damage is: both must have been met.
    assert!(read > 200 && refused > 10_000, "{read} read, {refused} refused");
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let message = Adapter::read(folder.path()).unwrap_err().to_string();
    assert!(message.contains("is not a regular file"), "{message}");
    assert!(message.contains(&folder.path().display().to_string()), "{message}");
    let missing = folder.path().join("missing.safetensors");
    assert!(
        Adapter::read(&missing)
            .is_err_and(|e| e.to_string().contains("missing.safetensors cannot be read: "))
    );
    #[cfg(unix)]
    for device in ["/dev/zero", "/dev/null"] {
        let message = Adapter::read(device).unwrap_err().to_string();
        assert!(message.contains("is not a regular file"), "{message}");
    }
}

#[test]
fn a_header_above_the_limit_is_not_written() {
    let (_, adapter) = seeds().remove(0);
    let big = BTreeMap::from([("text".to_string(), "x".repeat(MAX_HEADER as usize))]);
    let error = adapter.with_metadata(big).unwrap().to_bytes().unwrap_err();
    assert!(error.to_string().contains("limit is 16777216"), "{error}");
}

#[test]
fn adapters_that_could_not_be_written_cannot_be_made() {
    let (_, adapter) = seeds().remove(0);
    let layer = || adapter.layers()[0].clone();
    let trained = |name: &str| TrainedTensor::new(name, [2], vec![0.5; 2]).unwrap();
    let with = |names: &[&str]| {
        let tensors = names.iter().map(|name| trained(name)).collect();
        adapter.clone().with_trained_tensors(tensors).map(drop)
    };
    let shaped = |shape: &[usize]| TrainedTensor::new("head.bias", shape, vec![0.5; 2]).unwrap_err();
    let wide = || {
        let shape = KronShape::lora(LayerDims { d_out: 6, d_in: 9 }, 1).unwrap();
        Layer::new("q", Scaling::plain(1.0).unwrap(), Theta::init(shape, 1)).unwrap()
    };
    let most = (0..=Adapter::MAX_TERMS).map(|term| layer().with_term(term)).collect();
    let named = |module: &str| Layer::new(module, layer().scaling(), layer().theta().clone());
    let reserved = BTreeMap::from([(Adapter::RESERVED_KEY.to_string(), String::new())]);
    let errors = [
        (Adapter::new(vec![]).unwrap_err(), "an adapter of 0 layers"),
        (Adapter::new(vec![layer(), layer()]).unwrap_err(), "module q occurs twice"),
        (Adapter::new(vec![layer().with_term(1)]).unwrap_err(), "term 1 of module q does not follow term 0"),
        (
            Adapter::new(vec![layer(), layer().with_term(2)]).unwrap_err(),
            "term 2 of module q does not follow term 1",
        ),
        (Adapter::new(vec![layer(), wide().with_term(1)]).unwrap_err(), "term 1 of module q is 6×9"),
        (Adapter::new(most).unwrap_err(), "module q has term 16, but the terms are 0 to 15"),
        (adapter.clone().with_metadata(reserved).unwrap_err(), "the format's own"),
        (
            adapter.clone().with_target_modules(vec!["a\n".into()]).unwrap_err(),
            "target module \"a\\n\" is refused",
        ),
        (named("a/b").unwrap_err(), "module \"a/b\" is refused"),
        (Scaling::new(f32::NAN, 1, ScaleRule::AlphaOverR).unwrap_err(), "alpha is NaN"),
        (Scaling::new(1.0, 0, ScaleRule::AlphaOverSqrtR).unwrap_err(), "over rank 0"),
        (Scaling::plain(f32::INFINITY).unwrap_err(), "is inf"),
        (with(&["b", "a", "b"]).unwrap_err(), "trained tensor \"b\" occurs twice"),
        (with(&["q.gain"]).unwrap_err(), "\"q.gain\" lies in module \"q\", which has a layer"),
        (TrainedTensor::new("a b", [], vec![0.5]).unwrap_err(), "trained tensor \"a b\" is refused"),
        (shaped(&[3]), "trained tensor head.bias has 2 values, but its shape is [3]"),
        (shaped(&[2, 0]), "every dimension is at least 1"),
        (shaped(&[1; 9]), "has 9 dimensions"),
        (shaped(&[usize::MAX, 2]), "has 2 values"),
    ];
    for (error, says) in errors {
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(named(&"x".repeat(512)).is_ok());
    assert!(with(&["qq.gain", "p.q.gain"]).is_ok(), "modules of other names");
    assert!(with(&["q.bias"]).is_ok(), "the bias of a layer");
    let rows = |rows: &[usize]| TrainedTensor::of_rows("e.weight", rows.to_vec(), 1, vec![0.5; 2]).map(drop);
    assert!(rows(&[7, 3]).is_ok());
    assert!(rows(&[7, 7]).unwrap_err().to_string().contains("two rows of one index"));
    assert!(rows(&[7]).unwrap_err().to_string().contains("has 2 values, but its shape is [1, 1]"));
    // Layers that are changed later are compared with the tensors, too.
    let kept = adapter.clone().with_trained_tensors(vec![trained("k.gain")]).unwrap();
    assert_eq!(kept.with_layers(vec![layer()]).unwrap(), kept);
    let error = kept.with_layers(vec![named("k").unwrap()]).unwrap_err().to_string();
    assert!(error.contains("lies in module \"k\""), "{error}");
    let broken = TrainedTensor::new("head.bias", [2], vec![0.5, f32::NAN]).unwrap();
    let error =
        adapter.clone().with_trained_tensors(vec![broken]).unwrap().to_bytes().unwrap_err().to_string();
    assert!(error.contains("value 1 of head.bias is NaN"), "{error}");
}

#[test]
fn scale_is_shown_as_it_was_given() {
    let given = |alpha, rank, rule| Scaling::new(alpha, rank, rule).unwrap();
    let linear = given(16.0, 8, ScaleRule::AlphaOverR);
    assert_eq!((linear.to_string().as_str(), linear.scale().get()), ("16/8", 2.0));
    let root = given(16.0, 4, ScaleRule::AlphaOverSqrtR);
    assert_eq!((root.to_string().as_str(), root.scale().get()), ("16/√4", 8.0));
    assert_eq!(Scaling::plain(0.37).unwrap().scale().get(), 0.37);
}

#[test]
fn a_layer_is_found_and_computed_by_its_module() {
    let (_, adapter) = seeds().pop().unwrap();
    let layer = adapter.layer("lm_head").unwrap();
    assert_eq!(layer.op().shape, KronShape::lora(LayerDims { d_out: 4, d_in: 3 }, 2).unwrap());
    assert_eq!(layer.op().scale.get(), 0.05);
    assert!(adapter.layer("lm_hea").is_none());
    let (_, head) = seeds().into_iter().find(|(name, _)| *name == "head").unwrap();
    assert_eq!(head.trained_tensor("head.bias").unwrap().values(), [-0.25, 0.0, 0.25]);
    assert_eq!((head.trained_tensor("head").is_none(), head.trained_values()), (true, 10));
    assert_eq!(head.trained_summary().unwrap(), "gain and 2 more");
    assert_eq!(adapter.params(), adapter.layers().iter().map(|l| l.theta().as_slice().len()).sum::<usize>());
}
