//! Ready rules of shapes for [`Inject`].

use candle_core::{Result, bail};
use kron_adapter::plan::{Budget, Family, Method, Model, paper_split, search};
use kron_adapter::{ScaleRule, Scaling};

use crate::error::of_adapter;
use crate::inject::Inject;

impl Inject<'_> {
    /// Puts new adapters of one method on the modules that match a pattern, with s = alpha / r.
    ///
    /// A split that does not divide a layer is reduced to the nearest smaller one that does. A full inner factor has no
    /// rank, and s = alpha.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Linear;
    /// use kron_candle::{Inject, Method, Split};
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let method = Method::Kron { split: Split { a_out: 4, a_in: 4 }, rank: 8 };
    /// let inject = Inject::of_method(&["q_proj", "up_proj"], 1, method, 32.0)?;
    /// let base = |d_out, d_in| Ok::<_, candle_core::Error>(Linear::new(Tensor::zeros((d_out, d_in), DType::F32, &Device::Cpu)?, None));
    /// let (q, up) = (inject.wrap(base(64, 64)?, "0.q_proj")?, inject.wrap(base(90, 64)?, "0.up_proj")?);
    /// let split = |layer: &kron_candle::KronLinear| layer.deltas().first().map(|d| (d.op().shape.a_out(), d.op().shape.a_in()));
    /// assert_eq!((split(&q), split(&up)), (Some((4, 4)), Some((3, 4))));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// A pattern is empty. The rule fails on a rank or side of 0, and on an alpha that is not finite.
    pub fn of_method<P: AsRef<str>>(patterns: &[P], seed: u64, method: Method, alpha: f32) -> Result<Self> {
        Self::new(patterns, seed, move |_, dims| {
            let shape = method.fit(dims)?.shape;
            let rank = shape.rank().unwrap_or(1);
            Ok((shape, Scaling::new(alpha, rank, ScaleRule::AlphaOverR)?))
        })
    }

    /// Puts the paper's Kron-LoRA (arXiv 2508.01961) on the modules that match a pattern: a_in = 2, and a_out a divisor of the
    /// model's hidden size near a 200th of it; s = alpha / rank.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Linear;
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let inject = kron_candle::Inject::paper(&["q_proj"], 1, 4096, 8, 32.0)?;
    /// let base = Linear::new(Tensor::zeros((4096, 4096), DType::F32, &Device::Cpu)?, None);
    /// let layer = inject.wrap(base, "layers.0.q_proj")?;
    /// assert_eq!(layer.deltas()[0].op().shape.params(), 18_464); // LoRA of rank 8 has 65 536
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Inject::of_method`].
    pub fn paper<P: AsRef<str>>(
        patterns: &[P],
        seed: u64,
        hidden: usize,
        rank: usize,
        alpha: f32,
    ) -> Result<Self> {
        Self::of_method(patterns, seed, Method::Kron { split: paper_split(hidden), rank }, alpha)
    }

    /// Puts the Kron-LoRA with the most parameters within a budget on the modules that match a pattern; s = alpha / r.
    ///
    /// `model` has the layers that the patterns match; of equal shapes, [`search`] takes that of the highest rank.
    ///
    /// ```
    /// use kron_candle::{Inject, LayerDims, Model};
    /// # use kron_adapter::plan::Linear;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let layers = vec![Linear::new("q_proj", LayerDims { d_out: 64, d_in: 64 }, 12)?];
    /// let model = Model::new("mine", 64, layers, 0)?;
    /// let inject = Inject::budget(&["q_proj"], 1, &model, 4000, 32.0)?;
    /// # let _ = inject;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// No shape is within the budget, and as [`Inject::of_method`].
    pub fn budget<P: AsRef<str>>(
        patterns: &[P],
        seed: u64,
        model: &Model,
        params: u64,
        alpha: f32,
    ) -> Result<Self> {
        let choices = search(model, Family::Kron, Budget::AtMost(params)).map_err(of_adapter)?;
        match choices.first() {
            Some(choice) => Self::of_method(patterns, seed, choice.method, alpha),
            None => bail!("no Kron-LoRA of the model's layers has {params} parameters or fewer"),
        }
    }
}
