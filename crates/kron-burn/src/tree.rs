//! The linear layers of a model and its adapters, by their paths.

use std::collections::{BTreeMap, HashSet};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor};
use kron_core::LayerDims;

/// Container type of whatever a reparameterization holds.
const REPARAMETERIZATION: &str = "Reparameterization";

/// Linear layer of burn in a model.
pub(crate) struct Found {
    /// Dotted path, without `.weight`.
    pub module: String,
    /// Sizes of the weight.
    pub dims: LayerDims,
    /// Device of the weight.
    pub device: Device,
    /// Name of the reparameterization that the weight has.
    pub reparameterization: Option<String>,
}

/// A model's linear layers, in its own order, and the parameters of its reparameterizations.
#[derive(Default)]
pub(crate) struct Tree {
    path: Vec<String>,
    containers: Vec<String>,
    /// Linear layers.
    pub layers: Vec<Found>,
    /// Parameters inside reparameterizations.
    pub nested: HashSet<ParamId>,
    /// θ of each adapter of this crate, by its module.
    pub thetas: BTreeMap<String, Tensor<1>>,
}

impl Tree {
    /// Visits a model.
    pub(crate) fn of<M: Module>(model: &M) -> Self {
        let mut tree = Self::default();
        model.visit(&mut tree);
        tree
    }

    /// Path of the module whose parameter of this name is visited.
    fn module(&self, parameter: &str) -> Option<String> {
        self.path.join(".").strip_suffix(parameter)?.strip_suffix('.').map(str::to_owned)
    }
}

impl ModuleVisitor for Tree {
    fn enter_module(&mut self, name: &str, container: &str) {
        if container == REPARAMETERIZATION
            && let (Some(module), Some(layer)) = (self.module("weight"), self.layers.last_mut())
            && layer.module == module
        {
            layer.reparameterization = Some(name.into());
        }
        self.path.push(name.into());
        self.containers.push(container.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if self.containers.iter().any(|container| container == REPARAMETERIZATION) {
            self.nested.insert(param.id);
            if let (1, Some(module)) = (D, self.module("weight.kron.theta")) {
                let theta = param.base();
                let len = theta.shape().num_elements();
                self.thetas.insert(module, theta.reshape([len]));
            }
        } else if let (Some("Struct:Linear"), Some(module)) =
            (self.containers.last().map(String::as_str), self.module("weight"))
        {
            // The shape that burn keeps for a lazy weight of `LinearLayout::Col` is not yet transposed.
            let weight = param.base();
            if let [d_in, d_out] = weight.dims()[..] {
                let (dims, device) = (LayerDims { d_out, d_in }, weight.device());
                self.layers.push(Found { module, dims, device, reparameterization: None });
            }
        }
    }
}
