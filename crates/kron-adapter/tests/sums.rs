//! Sums of terms: the file, the equal LoRA, and formats and functions that hold one layer for each module.

use kron_adapter::algebra::Delta;
use kron_adapter::combine::{Method, combine, sums_as_lora};
use kron_adapter::limits::Limits;
use kron_adapter::peft::LoraOptions;
use kron_adapter::resolve::{BaseTensors, resolve_module_names};
use kron_adapter::{Adapter, FilePool, IfExists, Layer, OutputFormat, Scaling, read, write};
use kron_core::{KronOp, KronShape, LayerDims, Outer, Split, Theta, reference};
use ndarray::Array2;
use safetensors::Dtype;

const LAYER: LayerDims = LayerDims { d_out: 24, d_in: 30 };

fn term(term: usize, shape: KronShape, scale: f32) -> Layer {
    let theta = Theta::random(shape, 7 + term as u64);
    Layer::new("a.q", Scaling::plain(scale).unwrap(), theta).unwrap().with_term(term)
}

/// Makes a sum of three terms, of ranks 2·3, 3·2 and 4·6 as LoRAs, and a layer beside it.
fn adapter(scales: [f32; 3]) -> Adapter {
    let kron = |a_out, a_in, rank| KronShape::kron(LAYER, Split { a_out, a_in }, rank).unwrap();
    let full = KronShape::krona(LAYER, Split { a_out: 4, a_in: 5 }).unwrap();
    let shapes = [kron(4, 2, 3), kron(3, 5, 2), full].into_iter().zip(scales).enumerate();
    let lone = Layer::new("a.k", Scaling::plain(0.5).unwrap(), Theta::random(kron(4, 2, 3), 1)).unwrap();
    Adapter::new([lone].into_iter().chain(shapes.map(|(k, (shape, scale))| term(k, shape, scale))).collect())
        .unwrap()
}

fn delta_weight(terms: &[Layer]) -> Array2<f64> {
    let delta = |layer: &Layer| {
        let (scale, theta) = (layer.scaling().scale(), layer.theta());
        reference::delta_weight(&KronOp::new(*theta.shape(), scale), theta)
    };
    terms.iter().map(delta).reduce(|sum, delta| sum + delta).expect("a term")
}

/// Asserts that ΔW of a module is equal up to one rounding of each product, and of the scale where there are several.
fn assert_equal(got: &Adapter, want: &Adapter, module: &str) {
    let (got, want) = (delta_weight(got.terms(module)), delta_weight(want.terms(module)));
    let largest = want.iter().fold(0f64, |most, v| most.max(v.abs()));
    let apart = (got - &want).iter().fold(0f64, |most, v| most.max(v.abs()));
    assert!(largest > 0.01 && apart <= 30.0 * 2f64.powi(-24) * largest, "{module}: {apart} of {largest}");
}

#[test]
fn a_sum_is_a_lora_of_all_its_ranks() {
    for scales in [[0.5; 3], [0.5, -2.0, 0.25]] {
        let adapter = adapter(scales);
        let lora = sums_as_lora(&adapter, None, &mut Limits::new(1 << 20)).unwrap();
        assert_eq!(lora.layer("a.k"), adapter.layer("a.k"));
        let sum = lora.layer("a.q").unwrap();
        // The full inner factor is 6 × 6: of rank 6, by A's smaller side.
        assert_eq!((lora.layers().len(), sum.shape().outer(), sum.shape().rank()), (2, Outer::One, Some(36)));
        assert_equal(&lora, &adapter, "a.q");
        if scales == [0.5; 3] {
            let first = Delta::new(&adapter.terms("a.q")[0]).lora(kron_adapter::algebra::Join::Up);
            let up = Array2::from_shape_vec((24, 36), sum.theta().b().to_vec()).unwrap();
            let want = first.up.mapv(|v| f64::from(v as f32));
            assert_eq!(up.slice(ndarray::s![.., ..6]).mapv(f64::from), want, "each product is rounded once");
        }
        for join in [kron_adapter::algebra::Join::Up, kron_adapter::algebra::Join::Down] {
            let of_side = sums_as_lora(&adapter, Some(join), &mut Limits::new(1 << 20)).unwrap();
            let ranks = adapter.terms("a.q").iter().map(|term| join.rank(term.shape())).sum();
            assert_eq!(of_side.layer("a.q").unwrap().shape().rank(), Some(ranks));
            assert_equal(&of_side, &adapter, "a.q");
        }
        let few = sums_as_lora(
            &adapter,
            None,
            &mut Limits { bytes: Limits::new(0).bytes.with_limit(1000), ..Limits::new(0) },
        );
        assert!(few.unwrap_err().to_string().contains("a LoRA of rank 6"));
    }
}

#[test]
fn a_peft_folder_has_the_sum() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = adapter([0.5; 3]);
    for (name, options) in [
        ("each", LoraOptions::default()),
        ("uniform", LoraOptions { uniform: true, ..LoraOptions::default() }),
    ] {
        let out = folder.path().join(name);
        write(&adapter, OutputFormat::Lora(options), &out, IfExists::Refuse).unwrap();
        let back = read(&out).unwrap().adapter;
        assert_eq!(back.layers().len(), 2);
        let rank = if options.uniform { 36 } else { 6 };
        assert_eq!(back.layer("a.k").unwrap().shape().rank(), Some(rank));
        ["a.q", "a.k"].iter().for_each(|module| assert_equal(&back, &adapter, module));
    }
    let small = LoraOptions { max_bytes: Some(1000), ..LoraOptions::default() };
    let refused = write(&adapter, OutputFormat::Lora(small), folder.path().join("small"), IfExists::Refuse);
    assert!(refused.unwrap_err().to_string().contains("a LoRA of rank 6"));
}

#[test]
fn formats_of_one_layer_for_each_module_refuse() {
    let (folder, adapter) = (tempfile::tempdir().unwrap(), adapter([0.5; 3]));
    for (format, says) in [
        (OutputFormat::PeftLokr, "module a.q is a sum of 3 terms, but PEFT's LoKr takes a single term"),
        (OutputFormat::Lycoris, "module a.q is a sum of 3 terms, but LyCORIS takes a single term"),
    ] {
        let error = write(&adapter, format, folder.path().join("out"), IfExists::Refuse).unwrap_err();
        assert_eq!(error.message(), says);
        assert_eq!(error.to_string(), format!("{says}; as a LoRA it loses nothing"));
    }
    let mut limits = Limits::new(1 << 20);
    let cat = combine(&[(&adapter, 2.0), (&adapter, -1.0)], Method::Cat, &mut limits).unwrap();
    assert_equal(&cat, &adapter, "a.q");
    let error = combine(&[(&adapter, 1.0)], Method::Linear, &mut limits).unwrap_err().to_string();
    assert!(error.contains("a sum of factors takes a single term"), "{error}");
}

#[test]
fn names_and_files_keep_the_terms() {
    let (folder, adapter) = (tempfile::tempdir().unwrap(), adapter([0.5, 1.0, 2.0]));
    let file = folder.path().join("adapter.safetensors");
    adapter.write(&file, IfExists::Refuse).unwrap();
    let loaded = read(&file).unwrap();
    assert_eq!(loaded.adapter, adapter);
    let model = ["model.a.q", "model.a.k"].map(|m| (format!("{m}.weight"), Dtype::F32, vec![24, 30]));
    let named = resolve_module_names(&adapter, &BaseTensors::new("model", model)).unwrap().adapter;
    assert_eq!(named.terms("model.a.q").len(), 3);
    assert!(
        named.terms("model.a.q").iter().map(Layer::theta).eq(adapter.terms("a.q").iter().map(Layer::theta))
    );

    // Rows of many adapters have one entry for each module.
    let pooled = FilePool::new(1 << 20).get(&file).unwrap();
    let entry = pooled.entry("a.q").unwrap();
    let theta = Theta::from_vec(entry.op.shape, entry.theta.to_vec()).unwrap();
    let apart = reference::delta_weight(&entry.op, &theta) - delta_weight(adapter.terms("a.q"));
    assert!(apart.iter().all(|v| v.abs() < 1e-5));
}
