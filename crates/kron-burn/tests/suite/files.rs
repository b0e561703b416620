//! Adapter files of a model in burn.

use burn::tensor::Device;
use kron_burn::{Adapter, IfExists, Kron, OutputFormat, TrainedTensor, load};

use crate::attach::{Model, adapted, tokens};
use crate::common::{distance, values};

#[test]
fn every_format_comes_back() {
    let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
    let (base, model, adapters) = adapted(&device);
    let want = adapters.to_adapter(&model).unwrap();
    let ours = folder.path().join("adapter.safetensors");
    adapters.save(&model, &ours, IfExists::Refuse).unwrap();
    assert_eq!(load(&ours).unwrap(), want);
    assert!(adapters.save(&model, &ours, IfExists::Refuse).unwrap_err().to_string().contains("exists"));
    for (name, format) in [("lokr", OutputFormat::PeftLokr), ("lora", OutputFormat::Lora(Default::default()))]
    {
        let out = folder.path().join(name);
        adapters.save_as(&model, &out, format, IfExists::Refuse).unwrap();
        let read = load(&out).unwrap();
        let again = Kron::trained(read).attach(base.clone()).unwrap().0;
        let (got, want) = (again.forward(tokens(&device), true), model.forward(tokens(&device), true));
        assert!(distance(&values(got), &values(want)) < 1e-5, "{name}");
    }
}

#[test]
fn trained_tensors_and_metadata_travel_along() {
    let device = Device::flex();
    let (_, model, adapters) = adapted(&device);
    let trained = TrainedTensor::new("classifier.bias", [2], vec![0.5, -1.0]).unwrap();
    let adapter = adapters.to_adapter(&model).unwrap();
    let metadata = [("base".to_owned(), "mine".to_owned())].into();
    let adapter = adapter.with_trained_tensors(vec![trained]).unwrap().with_metadata(metadata).unwrap();
    let (model, adapters) = Kron::trained(adapter.clone()).attach(Model::new(&device)).unwrap();
    assert_eq!(adapters.to_adapter(&model).unwrap(), adapter);
    assert_eq!(adapter.target_modules(), ["up", "down", "head"]);
}

#[test]
fn what_cannot_be_saved_is_refused() {
    let device = Device::flex();
    let (_, _, adapters) = adapted(&device);
    let error = adapters.to_adapter(&Model::new(&device)).unwrap_err().to_string();
    assert_eq!(error, "the model has no adapter on blocks.0.up, which these adapters name");
    assert!(load(std::env::temp_dir().join("no-such-adapter")).is_err());
    assert!(Adapter::new(Vec::new()).is_err());
}
