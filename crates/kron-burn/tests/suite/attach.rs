//! Attaching over a module tree: names, what is frozen, records, optimizers, and what is refused.

use burn::module::{Lora, Module, ParamGroup};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, LinearLayout};
use burn::optim::{GradientsParams, SgdConfig};
use burn::store::ModuleRecord;
use burn::tensor::{Device, Distribution, Int, Tensor};
use kron_burn::{
    Adapter, Adapters, Kron, KronAdapter, KronForward, KronShape, Layer, LayerDims, Result, ScaleRule,
    Scaling, Split, Theta,
};

use crate::common::{adapter, distance, values};

/// A model with layers at every kind of path.
#[derive(Module, Debug)]
pub struct Model {
    pub embed: Embedding,
    pub blocks: Vec<Block>,
    pub head: Option<Linear>,
}

#[derive(Module, Debug)]
pub struct Block {
    pub up: Linear,
    pub down: Linear,
}

impl Model {
    pub fn new(device: &Device) -> Self {
        Self::with_layout(LinearLayout::Col, device)
    }

    fn with_layout(layout: LinearLayout, device: &Device) -> Self {
        let down = LinearConfig::new(32, 12).with_layout(layout).with_bias(false);
        let block = || Block { up: LinearConfig::new(12, 32).init(device), down: down.init(device) };
        Self {
            embed: EmbeddingConfig::new(10, 12).init(device),
            blocks: vec![block(), block()],
            head: Some(LinearConfig::new(12, 20).init(device)),
        }
    }

    pub fn forward(&self, tokens: Tensor<2, Int>, fused: bool) -> Tensor<3> {
        let apply = |layer: &Linear, x| if fused { layer.forward_kron(x) } else { layer.forward(x) };
        let mut x = self.embed.forward(tokens);
        for block in &self.blocks {
            x = apply(&block.down, burn::tensor::activation::relu(apply(&block.up, x)));
        }
        apply(self.head.as_ref().expect("a head"), x)
    }
}

pub fn rule(_: &str, dims: LayerDims) -> Result<(KronShape, Scaling)> {
    Ok((KronShape::kron(dims, Split { a_out: 2, a_in: 2 }, 3)?, Scaling::new(6.0, 3, ScaleRule::AlphaOverR)?))
}

/// A model without adapters, and the same with adapters whose B is not zero.
pub fn adapted(device: &Device) -> (Model, Model, Adapters) {
    adapt(Model::new(device))
}

fn adapt(base: Model) -> (Model, Model, Adapters) {
    let (new, adapters) = Kron::new(&["up", "down", "head"], 5, rule).unwrap().attach(base.clone()).unwrap();
    let new = adapters.to_adapter(&new).unwrap();
    let random = |layer: &Layer| {
        Layer::new(layer.module(), layer.scaling(), Theta::random(*layer.shape(), 3)).unwrap()
    };
    let random = new.with_layers(new.layers().iter().map(random).collect()).unwrap();
    let (model, adapters) = Kron::trained(random).attach(base.clone()).unwrap();
    (base, model, adapters)
}

pub fn tokens(device: &Device) -> Tensor<2, Int> {
    Tensor::from_data([[1, 4, 9], [0, 2, 7]], device)
}

#[test]
fn names_decide_and_all_else_is_frozen() {
    let device = Device::flex().autodiff();
    let kron = Kron::new(&["0.up", "down", "head"], 5, rule).unwrap();
    let (model, adapters) = kron.attach(Model::new(&device)).unwrap();
    let modules: Vec<&str> = adapters.modules().collect();
    assert_eq!(modules, ["blocks.0.up", "blocks.0.down", "blocks.1.down", "head"]);
    let params = |d_out, d_in| rule("", LayerDims { d_out, d_in }).unwrap().0.params();
    assert_eq!(adapters.params(), params(32, 12) + 2 * params(12, 32) + params(20, 12));
    let has = |layer: &Linear| layer.weight.reparameterization::<KronAdapter>().is_some();
    assert!(has(&model.blocks[0].up) && !has(&model.blocks[1].up));
    // A new adapter has B = 0.
    let (plain, fused) = (model.forward(tokens(&device), false), model.forward(tokens(&device), true));
    assert!(distance(&values(fused.clone()), &values(plain)) < 1e-6);
    let grads = GradientsParams::from_grads(fused.powf_scalar(2.0).sum().backward(), &model);
    assert_eq!(grads.len(), 4, "one θ for each adapter");
}

#[test]
fn an_embedding_is_no_linear_layer() {
    let error = Kron::new(&["embed"], 5, rule).unwrap().attach(Model::new(&Device::flex())).unwrap_err();
    assert_eq!(error.to_string(), "no linear layer of the model matches \"embed\"");
}

#[test]
fn forward_kron_is_forward() {
    let device = Device::flex();
    let (base, model, _) = adapted(&device);
    let (dense, fused) = (model.forward(tokens(&device), false), model.forward(tokens(&device), true));
    assert!(distance(&values(fused), &values(dense.clone())) < 1e-5);
    let merged = values(model.materialize().forward(tokens(&device), false));
    assert!(distance(&merged, &values(dense.clone())) < 1e-6);
    assert!(distance(&values(base.forward(tokens(&device), true)), &values(dense)) > 1e-2, "ΔW is not zero");
}

#[test]
fn a_step_changes_theta_alone_and_lowers_the_loss() {
    let device = Device::flex().autodiff();
    let (_, model, _) = adapted(&device);
    let loss = |model: &Model| model.forward(tokens(&device), true).powf_scalar(2.0).mean();
    let before = loss(&model);
    let first = before.clone().into_scalar::<f32>();
    let grads = GradientsParams::from_grads(before.backward(), &model);
    let old = model.clone();
    let model = SgdConfig::new().init().step(0.05, model, grads);
    assert!(loss(&model).into_scalar::<f32>() < first);
    let theta = |model: &Model| values(adapter(&model.blocks[0].up).theta.val());
    assert!(distance(&theta(&model), &theta(&old)) > 0.0);
    let weight = |model: &Model| values(model.blocks[0].up.weight.base());
    assert_eq!(weight(&model), weight(&old));
}

/// burn loads no record into a layer of `LinearLayout::Col` whose weight is made already, so the weights lie in rows.
#[test]
fn records_keep_theta() {
    let device = Device::flex();
    let new = || Model::with_layout(LinearLayout::Row, &device);
    let (_, model, _) = adapt(new());
    let want = values(model.forward(tokens(&device), true));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    model.clone().into_record().save(path.clone()).unwrap();
    let other = || Kron::new(&["up", "down", "head"], 9, rule).unwrap().attach(new()).unwrap().0;
    let loaded = other().load_record(ModuleRecord::load(path).unwrap());
    assert_eq!(values(loaded.forward(tokens(&device), true)), want);
    // The adapters alone.
    let group = ParamGroup::from_regex(r"\.kron\.").unwrap();
    let record = model.clone().into_record_group(group);
    assert_eq!(record.len(), 5);
    let partial = other().load_record(record.allow_partial(true));
    let theta = |model: &Model| values(adapter(&model.blocks[1].down).theta.val());
    assert_eq!(theta(&partial), theta(&model));
}

#[test]
fn a_second_set_of_adapters_leaves_the_first() {
    let device = Device::flex().autodiff();
    let (model, first) = Kron::new(&["up"], 5, rule).unwrap().attach(Model::new(&device)).unwrap();
    let (model, second) = Kron::new(&["head"], 5, rule).unwrap().attach(model).unwrap();
    assert!(first.to_adapter(&model).is_ok() && second.to_adapter(&model).is_ok());
    let loss = model.forward(tokens(&device), true).powf_scalar(2.0).sum();
    assert_eq!(GradientsParams::from_grads(loss.backward(), &model).len(), 3, "no θ is frozen");
    let error = Kron::new(&["up"], 5, rule).unwrap().attach(model).unwrap_err().to_string();
    assert_eq!(error, "module blocks.0.up has the reparameterization kron already, but a weight has one");
    let lora = Model::new(&device).apply_lora(Lora::new(2, 4.0));
    let error = Kron::new(&["up"], 5, rule).unwrap().attach(lora).unwrap_err().to_string();
    assert_eq!(error, "module blocks.0.up has the reparameterization lora already, but a weight has one");
}

#[test]
fn misfits_are_refused() {
    let device = Device::flex();
    let refused =
        |kron: Result<Kron>| kron.and_then(|kron| kron.attach(Model::new(&device))).unwrap_err().to_string();
    assert!(refused(Kron::new(&[""], 1, rule)).contains("is empty"));
    assert_eq!(
        refused(Kron::new(&["up", "q_proj"], 1, rule)),
        "no linear layer of the model matches \"q_proj\""
    );
    let uneven = |_: &str, dims| {
        let shape = KronShape::kron(dims, Split { a_out: 5, a_in: 1 }, 2)?;
        Ok((shape, Scaling::plain(1.0)?))
    };
    assert_eq!(refused(Kron::new(&["up"], 1, uneven)), "blocks.0.up: a_out = 5 does not divide d_out = 32");
    let other =
        |_: &str, _| Ok((KronShape::lora(LayerDims { d_out: 12, d_in: 32 }, 2)?, Scaling::plain(1.0)?));
    assert_eq!(
        refused(Kron::new(&["up"], 1, other)),
        "blocks.0.up has 12 inputs and 32 outputs, but its adapter is 12×32 lora r 2"
    );
    let shape = KronShape::lora(LayerDims { d_out: 16, d_in: 12 }, 2).unwrap();
    let layer = Layer::new("blocks.7.up", Scaling::plain(1.0).unwrap(), Theta::random(shape, 1)).unwrap();
    assert_eq!(
        refused(Ok(Kron::trained(Adapter::new(vec![layer]).unwrap()))),
        "the model has no linear layer blocks.7.up, which the adapter was trained for"
    );
}

#[test]
fn devices_and_modes_take_theta_along() {
    let device = Device::flex().autodiff();
    let (_, model, adapters) = adapted(&device);
    let want = adapters.to_adapter(&model).unwrap();
    let valid = model.valid();
    let x = Tensor::<2>::random([3, 12], Distribution::Default, &Device::flex());
    assert!(!valid.blocks[0].up.forward_kron(x).is_autodiff());
    assert_eq!(adapters.to_adapter(&valid).unwrap(), want);
    assert_eq!(adapters.to_adapter(&valid.train().fork(&device)).unwrap(), want);
}
