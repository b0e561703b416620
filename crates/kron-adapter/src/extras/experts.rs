//! LoRAs of a parameter that is a stack of experts: `target_parameters` of PEFT.
//!
//! ```text
//! lora_A  [E·r, in]    rows e·r … (e+1)·r − 1 belong to expert e
//! lora_B  [out, E·r]   columns e, E + e, 2·E + e … belong to expert e
//! ```

use crate::matrix::Matrix;
use crate::{Error, Result, Scaling, Tensors, text};

/// Factors of one parameter of a module. The file does not say of which, where a module has several.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    module: String,
    source: String,
    /// Parameters that it may belong to, with their scalings.
    parameters: Vec<(String, Scaling)>,
    down: Matrix,
    up: Matrix,
}

/// Names of two factors in a file, of one module and one depth of nesting.
#[derive(Default)]
pub(super) struct Pair<'a> {
    pub down: Option<&'a String>,
    pub up: Option<&'a String>,
}

/// Returns the module of a stack's factor without the wrappers around it, their number, and true for the factor B.
pub(super) fn parts<'a>(name: &'a str, targets: &[String]) -> Option<(&'a str, usize, bool)> {
    let (mut module, is_up) = match (name.strip_suffix(".lora_A.weight"), name.strip_suffix(".lora_B.weight"))
    {
        (Some(module), _) => (module, false),
        (_, Some(module)) => (module, true),
        _ => return None,
    };
    let mut depth = 0;
    while let Some(inner) = module.strip_suffix(".base_layer") {
        (module, depth) = (inner, depth + 1);
    }
    (parameters(module, targets).next().is_some()).then_some((module, depth, is_up))
}

/// Returns the parameters of a module that are targets. The weight of a module alone is a layer's.
pub(super) fn parameters<'a>(module: &'a str, targets: &'a [String]) -> impl Iterator<Item = &'a str> {
    let of = move |target: &'a String| {
        let (path, parameter) = target.rsplit_once('.')?;
        let rest = module.strip_suffix(path)?;
        (rest.is_empty() || rest.ends_with('.')).then_some(parameter)
    };
    targets.iter().filter_map(of).filter(|parameter| *parameter != "weight")
}

impl Experts {
    pub(super) fn read(
        tensors: &Tensors,
        module: &str,
        pair: &Pair,
        parameters: Vec<(String, Scaling)>,
    ) -> Result<Self> {
        let refused = |why: String| Error::data(format!("{}: {} {why}", tensors.path(), text::name(module)));
        let (Some(down_name), Some(up)) = (pair.down, pair.up) else {
            return Err(refused("needs both lora_A.weight and lora_B.weight".into()));
        };
        let (down, up) = (Matrix::read(tensors, down_name)?, Matrix::read(tensors, up)?);
        if up.cols != down.rows {
            return Err(refused(format!("has factors of ranks {} and {}", up.cols, down.rows)));
        }
        Ok(Self { module: module.into(), source: down_name.clone(), parameters, down, up })
    }

    /// Module of the model.
    pub fn module(&self) -> &str {
        &self.module
    }
    /// Name of the factor A in the adapter's file.
    pub fn source(&self) -> &str {
        &self.source
    }
    /// Parameters of the module that the factors may belong to, with their scalings.
    pub fn parameters(&self) -> &[(String, Scaling)] {
        &self.parameters
    }
    /// Inputs and outputs of an expert, and the rank of all experts together.
    pub const fn sizes(&self) -> (usize, usize, usize) {
        (self.down.cols, self.up.rows, self.down.rows)
    }
    /// Values of A and B, row-major.
    pub fn values(&self) -> [&[f32]; 2] {
        [&self.down.data, &self.up.data]
    }
    pub(crate) fn in_module(self, module: String) -> Self {
        Self { module, ..self }
    }

    /// Returns B_e, out × r, and A_e, r × in, of expert `e` of `experts`.
    pub(crate) fn expert(&self, e: usize, experts: usize) -> (Matrix, Matrix) {
        let (d_in, d_out, ranks) = self.sizes();
        let rank = ranks / experts;
        let rows = |row: usize| (0..rank).map(move |k| row * ranks + k * experts + e);
        let up = (0..d_out).flat_map(rows).map(|at| self.up.data[at]).collect();
        let down = self.down.data[e * rank * d_in..][..rank * d_in].to_vec();
        (Matrix { rows: d_out, cols: rank, data: up }, Matrix { rows: rank, cols: d_in, data: down })
    }
}
