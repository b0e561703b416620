//! Real PEFT folders through every format and back, and what is refused on the way.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use kron_adapter::algebra::Delta;
use kron_adapter::peft::LoraOptions;
use kron_adapter::resolve::{BaseTensors, resolve_module_names};
use kron_adapter::{Adapter, IfExists, Layer, ScaleRule, Scaling};
use kron_adapter::{Error, Format, Kind, OutputFormat, Suggestion, read, write, write_output};
use kron_core::{KronShape, LayerDims, Split, Theta};

fn golden(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(folder)
}

/// One layer, split as LyCORIS and PEFT split 12 × 12, with s = 2.
fn adapter(shape: KronShape) -> Adapter {
    let scaling = Scaling::new(2.0, 1, ScaleRule::AlphaOverR).expect("legal");
    let layer = Layer::new("a.q", scaling, Theta::random(shape, 3)).expect("legal");
    Adapter::new(vec![layer]).expect("one layer")
}

fn kron() -> Adapter {
    adapter(
        KronShape::kron(LayerDims { d_out: 12, d_in: 12 }, Split { a_out: 3, a_in: 3 }, 1).expect("legal"),
    )
}

/// Scales as numbers: a format may say s by another alpha and rank.
fn scales(adapter: &Adapter) -> Vec<f32> {
    adapter.layers().iter().map(|layer| layer.scaling().scale().get()).collect()
}

#[test]
fn factors_pass_bit_for_bit_through_every_format_that_holds_them() {
    let cases = [
        ("lokr", OutputFormat::PeftLokr, Format::PeftLokr),
        ("lokr_mix", OutputFormat::Kron, Format::Kron),
        ("lora", OutputFormat::Lora(LoraOptions::default()), Format::PeftLora),
        ("lora_rs", OutputFormat::Lora(LoraOptions::default()), Format::PeftLora),
    ];
    for (name, to, format) in cases {
        let folder = tempfile::tempdir().unwrap();
        let before = read(golden("model_llama").join(name)).unwrap().adapter;
        let out = folder.path().join("out");
        write(&before, to, &out, IfExists::Refuse).unwrap();
        let after = read(&out).unwrap();
        assert_eq!((after.format, scales(&after.adapter)), (format, scales(&before)), "{name}");
        for layer in before.layers() {
            let other = after.adapter.layer(layer.module()).expect("a layer of each module");
            assert_eq!(other.theta(), layer.theta(), "{name}: {}", layer.module());
        }
        assert_eq!(after.adapter.metadata(), before.metadata(), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("lycoris.safetensors");
    write(&kron(), OutputFormat::Lycoris, &out, IfExists::Refuse).unwrap();
    let after = read(&out).unwrap().adapter;
    assert_eq!(after.layers()[0].module(), "lycoris_a_q");
    let tensors = ["a.k.weight", "a.q.weight"].map(|name| (name, safetensors::Dtype::F32, vec![12, 12]));
    let model = BaseTensors::new("model", tensors);
    let named = resolve_module_names(&after, &model).unwrap().adapter;
    let (layer, own) = (named.layer("a.q").expect("the model's name"), kron());
    assert_eq!((layer.theta(), scales(&named)), (own.layers()[0].theta(), scales(&own)));
}

#[test]
fn a_lora_of_a_kron_lora_is_the_same_change() {
    let before = read(golden("model_llama/lokr")).unwrap().adapter;
    for form in [LoraOptions::default(), LoraOptions { uniform: true, ..Default::default() }] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("lora");
        write(&before, OutputFormat::Lora(form), &out, IfExists::Refuse).unwrap();
        let after = read(&out).unwrap().adapter;
        for layer in before.layers() {
            let other = after.layer(layer.module()).expect("a layer of each module");
            let distance = Delta::new(layer).relative_distance(&Delta::new(other)).unwrap();
            // Each product is rounded once to float32; the closed form itself is good to 1e-8.
            assert!(distance < f64::from(f32::EPSILON), "{form:?}, {}: {distance:e}", layer.module());
        }
    }
}

#[test]
fn refusals_say_whose_fault_it_is_and_what_would_succeed() {
    let lora = adapter(KronShape::lora(LayerDims { d_out: 12, d_in: 12 }, 1).expect("legal"));
    let wide = adapter(
        KronShape::kron(LayerDims { d_out: 12, d_in: 12 }, Split { a_out: 3, a_in: 3 }, 2).expect("legal"),
    );
    let unsplit = adapter(
        KronShape::kron(LayerDims { d_out: 12, d_in: 12 }, Split { a_out: 2, a_in: 6 }, 1).expect("legal"),
    );
    let refused =
        |adapter: &Adapter, to: OutputFormat| to.encode(adapter, &|_| Ok(())).expect_err("no such form");
    for (error, suggestion) in [
        (refused(&lora, OutputFormat::PeftLokr), Some(Suggestion::Lora)),
        (refused(&lora, OutputFormat::Lycoris), Some(Suggestion::Lora)),
        (refused(&wide, OutputFormat::PeftLokr), Some(Suggestion::LosslessLora)),
        (refused(&unsplit, OutputFormat::PeftLokr), Some(Suggestion::LosslessLora)),
        (refused(&unsplit, OutputFormat::Lycoris), None),
        (read(golden("nowhere")).expect_err("no file"), None),
    ] {
        assert_eq!((error.kind(), error.suggestion()), (Kind::Data, suggestion), "{error}");
        assert!(error.to_string().starts_with(error.message()), "{error}");
        assert_eq!(error.to_string().len() > error.message().len(), suggestion.is_some(), "{error}");
        // A program says it by options of its own.
        assert!(!error.to_string().contains("--"), "{error}");
    }
}

/// LyCORIS has the same tensors with another scale.
#[test]
fn weights_of_peft_without_their_configuration_are_refused() {
    for name in ["lokr", "lokr_mix", "lora"] {
        let folder = tempfile::tempdir().unwrap();
        let source = golden("model_llama").join(name);
        for path in ["adapter_model.safetensors", "alone.safetensors"].map(|file| folder.path().join(file)) {
            std::fs::copy(source.join("adapter_model.safetensors"), &path).unwrap();
            let error = read(&path).expect_err("no scale");
            assert_eq!(error.kind(), Kind::Data);
            for says in ["is a tensor of PEFT", "adapter_config.json", "adapter_model.safetensors"] {
                assert!(error.to_string().contains(says), "{name}: {error}");
            }
        }
        std::fs::copy(source.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
        read(folder.path().join("adapter_model.safetensors")).expect("by the weights' path");
        read(folder.path().join("alone.safetensors")).expect_err("another name");
    }
}

#[test]
fn what_training_ruined_is_not_written() {
    let mut ruined = kron();
    ruined.thetas_mut().for_each(|theta| theta.as_mut_slice()[4] = f32::NAN);
    for to in [
        OutputFormat::Kron,
        OutputFormat::PeftLokr,
        OutputFormat::Lycoris,
        OutputFormat::Lora(LoraOptions::default()),
    ] {
        let error = to.encode(&ruined, &|_| Ok(())).expect_err("NaN");
        assert!(error.to_string().contains("a.q is NaN"), "{to:?}: {error}");
    }
}

#[test]
fn what_is_there_is_replaced_only_when_asked_and_when_it_is_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("lokr");
    write(&kron(), OutputFormat::PeftLokr, &out, IfExists::Refuse).unwrap();
    let taken = write(&kron(), OutputFormat::PeftLokr, &out, IfExists::Refuse).expect_err("it exists");
    assert_eq!((taken.kind(), taken.suggestion()), (Kind::Usage, Some(Suggestion::Replace)));
    write(&kron(), OutputFormat::Lora(LoraOptions::default()), &out, IfExists::Replace).unwrap();
    assert_eq!(read(&out).unwrap().format, Format::PeftLora);
    std::fs::write(out.join("notes.txt"), "mine").unwrap();
    let other =
        write(&kron(), OutputFormat::PeftLokr, &out, IfExists::Replace).expect_err("notes would be lost");
    assert_eq!((other.kind(), other.suggestion()), (Kind::Usage, Some(Suggestion::OtherName)));
    assert_eq!(std::fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
}

#[test]
fn a_watch_counts_what_is_done_and_its_error_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let adapter = read(golden("model_llama/lokr")).unwrap().adapter;
    let done = Cell::new(0);
    let count = |more| {
        done.set(done.get() + more);
        Ok(())
    };
    let contents = OutputFormat::Lora(LoraOptions::default()).encode(&adapter, &count).unwrap();
    assert_eq!(done.take(), adapter.layers().len() as u64);
    let out = folder.path().join("lora");
    let stop = |_| Err(Error::data("enough"));
    let error = write_output(&out, &contents, IfExists::Refuse, &stop).expect_err("stopped");
    assert!(error.to_string().contains("enough"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    write_output(&out, &contents, IfExists::Refuse, &count).unwrap();
    assert_eq!(done.get(), contents.bytes());
    assert!(
        OutputFormat::Lora(LoraOptions::default()).encode(&adapter, &|_| Err(Error::data("enough"))).is_err()
    );
}
