//! The tensor that each layer's ΔW is added to, or that a trained tensor replaces, after all checks of shape and dtype.

use kron_core::Dtype;
use safetensors::Dtype as FileDtype;

use super::base::{BaseModel, can_be_tied, weight_name};
use super::unmatched;
use crate::elements::element_dtype;
use crate::matrix::without_ones;
use crate::{Adapter, Error, Layer, Result, Suggestion, TrainedTensor};

/// Reason why a tied weight is refused, and the remedy.
const TIED: &str = "is tied: input embedding and output head are one tensor";
const UNTIE: &str = "untie them first (tie_word_embeddings)";

/// The tensor that takes one layer's ΔW, or a trained tensor's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Name of the tensor in the model.
    pub tensor: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// True if the tensor is stored as d_in × d_out, so that it takes ΔWᵀ.
    pub transposed: bool,
}

/// Finds the tensor of every layer, in the order of the layers.
///
/// # Errors
/// Fails if a layer has no weight in the model, and if that weight is tied,
/// stacked, of another shape, or of a dtype that cannot be added to.
pub fn place_layers(adapter: &Adapter, base: &impl BaseModel) -> Result<Vec<Placement>> {
    adapter.layers().iter().map(|layer| find_placement(layer, base)).collect()
}

/// Finds the tensor of the model that each trained tensor replaces, in their order.
///
/// # Errors
/// Fails if the model has no tensor of that name, and if the tensor is tied, of another shape,
/// or of a dtype that is not F32, F16 or BF16.
pub fn place_trained_tensors(adapter: &Adapter, base: &impl BaseModel) -> Result<Vec<Placement>> {
    find_replaced(adapter.trained_tensors(), base).map_err(|e| e.with(Suggestion::FactorsOnly))
}

fn find_replaced(trained: &[TrainedTensor], base: &impl BaseModel) -> Result<Vec<Placement>> {
    let found: Vec<_> = trained.iter().map(|tensor| (tensor, base.tensor(tensor.name()))).collect();
    let missing = found.iter().filter(|(_, found)| found.is_none()).map(|(tensor, _)| tensor.name());
    let missing: Vec<&str> = missing.collect();
    if !missing.is_empty() {
        return Err(unmatched::tensors_error(base, &missing)?);
    }
    let found = found.into_iter().filter_map(|(tensor, found)| Some((tensor, found?)));
    found.map(|(tensor, (dtype, shape))| check_replaced(tensor, dtype, shape, base)).collect()
}

fn check_replaced(
    trained: &TrainedTensor,
    dtype: FileDtype,
    shape: &[usize],
    base: &impl BaseModel,
) -> Result<Placement> {
    let name = trained.name();
    let refused = |why: String| Error::data(format!("{}: {name} {why}", base.name()));
    // Rows change the embedding and the head alike where both are one.
    let is_whole = trained.rows().is_none();
    if is_whole && name.strip_suffix(".weight").is_some_and(can_be_tied) && base.is_tied()? {
        return Err(refused(format!("{TIED}, and replacing it would change both; {UNTIE}")));
    }
    let Some(dtype) = element_dtype(dtype) else {
        return Err(refused(format!("is {dtype}, but a tensor that can be replaced is F32, F16 or BF16")));
    };
    if let (Some(rows), &[height, width]) = (trained.rows(), shape) {
        if let Some(row) = rows.iter().find(|row| **row >= height) {
            return Err(refused(format!("has {height} rows, but one of row {row} was trained")));
        }
        if trained.shape()[1] != width {
            return Err(refused(format!(
                "has rows of {width}, but those trained have {}",
                trained.shape()[1]
            )));
        }
    } else if shape != trained.shape() {
        return Err(refused(format!("is {shape:?}, but the trained tensor is {:?}", trained.shape())));
    }
    Ok(Placement { tensor: name.into(), dtype, transposed: false })
}

fn find_placement(layer: &Layer, base: &impl BaseModel) -> Result<Placement> {
    let module = layer.module();
    let Some((dtype, shape)) = base.weight(module) else {
        return Err(unmatched::error(base, &base.modules().collect::<Vec<_>>(), &[module]));
    };
    let tensor = weight_name(module);
    let refused = |why: String| Error::data(format!("{}: {tensor} {why}", base.name()));
    if can_be_tied(module) && base.is_tied()? {
        return Err(refused(format!("{TIED}, and folding into it would change both; {UNTIE}")));
    }
    let Some(dtype) = element_dtype(dtype) else {
        return Err(refused(format!("is {dtype}, but a weight that can be added to is F32, F16 or BF16")));
    };
    let shape = without_ones(shape);
    if shape.len() > 2 {
        return Err(refused(format!(
            "is stacked, {shape:?}: an adapter is for one matrix, so its target is ambiguous"
        )));
    }
    let (d_out, d_in) = (layer.shape().d_out(), layer.shape().d_in());
    let transposed = base.is_transposed(module);
    let stored = if transposed == Some(true) { [d_in, d_out] } else { [d_out, d_in] };
    if shape != stored {
        let hint = match transposed {
            None if shape == [d_in, d_out] => {
                "; it may be stored transposed, which only the model's folder with its config.json can tell"
            }
            _ => "",
        };
        return Err(refused(format!(
            "is {shape:?}, but the adapter's layer, {}, needs {stored:?}{hint}",
            layer.shape()
        )));
    }
    Ok(Placement { tensor, dtype, transposed: transposed == Some(true) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scaling;
    use kron_core::{KronShape, LayerDims, Theta};

    /// One tensor, with the facts of a configuration.
    struct Model {
        tensor: (FileDtype, Vec<usize>),
        transposed: Option<bool>,
        tied: bool,
    }

    impl BaseModel for Model {
        fn name(&self) -> String {
            "model".into()
        }
        fn tensor_names(&self) -> impl Iterator<Item = &str> {
            ["q.weight"].into_iter()
        }
        fn tensor(&self, name: &str) -> Option<(FileDtype, &[usize])> {
            ["q.weight", "wte.weight"].contains(&name).then_some((self.tensor.0, &self.tensor.1[..]))
        }
        fn is_transposed(&self, _: &str) -> Option<bool> {
            self.transposed
        }
        fn is_tied(&self) -> Result<bool> {
            Ok(self.tied)
        }
    }

    fn placed(model: &Model, module: &str) -> Result<Placement> {
        let shape = KronShape::lora(LayerDims { d_out: 6, d_in: 10 }, 2).unwrap();
        let layer = Layer::new(module, Scaling::plain(1.0)?, Theta::random(shape, 1))?;
        Ok(place_layers(&Adapter::new(vec![layer])?, model)?.remove(0))
    }

    fn model(dtype: FileDtype, shape: &[usize], transposed: Option<bool>) -> Model {
        Model { tensor: (dtype, shape.to_vec()), transposed, tied: false }
    }

    #[test]
    fn a_weight_is_found_with_its_dtype_and_its_side() {
        for (dtype, want) in
            [(FileDtype::F32, Dtype::F32), (FileDtype::F16, Dtype::F16), (FileDtype::BF16, Dtype::Bf16)]
        {
            for (shape, transposed) in [([6, 10], None), ([6, 10], Some(false)), ([10, 6], Some(true))] {
                let got = placed(&model(dtype, &shape, transposed), "q").unwrap();
                let transposed = transposed == Some(true);
                assert_eq!(got, Placement { tensor: "q.weight".into(), dtype: want, transposed });
            }
        }
    }

    #[test]
    fn weights_that_take_no_delta_are_refused() {
        let f32 = |shape: &[usize], transposed| model(FileDtype::F32, shape, transposed);
        for (model, says) in [
            (f32(&[6, 9], None), &["q.weight is [6, 9]", "needs [6, 10]"][..]),
            (f32(&[10, 6], None), &["[10, 6]", "transposed", "config.json"]),
            (f32(&[6, 10], Some(true)), &["q.weight is [6, 10]", "needs [10, 6]"]),
            (f32(&[2, 6, 10], None), &["q.weight is stacked", "[2, 6, 10]"]),
            (model(FileDtype::F8_E4M3, &[6, 10], None), &["F8_E4M3", "F32, F16 or BF16"]),
        ] {
            let error = placed(&model, "q").expect_err("no place").to_string();
            assert!(error.starts_with("model: ") && says.iter().all(|s| error.contains(s)), "{error}");
        }
        let known = placed(&f32(&[10, 6], Some(false)), "q").expect_err("a shape").to_string();
        assert!(!known.contains("config.json"), "{known}");
    }

    #[test]
    fn only_weights_that_can_be_tied_are_refused_in_a_tied_model() {
        let tied = Model { tied: true, ..model(FileDtype::F32, &[6, 10], Some(false)) };
        assert!(placed(&tied, "q").is_ok());
        let error = placed(&tied, "wte").expect_err("tied").to_string();
        assert!(error.contains("wte.weight is tied") && error.contains("tie_word_embeddings"), "{error}");
        assert!(placed(&Model { tied: false, ..tied }, "wte").is_ok());
    }
}
