//! An adapter's output, added to the output of any base, in place.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, DType, InplaceOp3, Layout, Result, Tensor, bail};
use kron_core::KronOp;

use crate::device_ops::{DeviceOps, ForwardInputs, Term, range, with_activation};
use crate::trainable_delta::TrainableDelta;

impl TrainableDelta {
    /// Adds s·x·(A ⊗ (B·C))ᵀ to `y`, … × d_out, in place, for x, … × d_in: one call beside any base, without a second y.
    ///
    /// It is for inference: no gradient flows through it, and dropout is off. Clones of `y` share its memory, and see the
    /// sum.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use kron_candle::{KronShape, Layer, LayerDims, ScaleRule, Scaling, Split, Theta, TrainableDelta};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let shape = KronShape::kron(LayerDims { d_out: 64, d_in: 96 }, Split { a_out: 4, a_in: 2 }, 8)?;
    /// let layer = Layer::new("q", Scaling::new(32.0, 8, ScaleRule::AlphaOverR)?, Theta::random(shape, 1))?;
    /// let delta = TrainableDelta::from_layer(&layer, &Device::Cpu)?;
    /// let x = Tensor::ones((2, 5, 96), DType::BF16, &Device::Cpu)?;
    /// let y = Tensor::zeros((2, 5, 64), DType::BF16, &Device::Cpu)?; // from a base of your own
    /// delta.add_to(&y, &x)?;
    /// assert!(y.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()? > 0.0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The shapes do not fit, the dtypes or devices differ, `y` is part of a larger tensor or not contiguous, or `y` or
    /// x is tracked for gradients.
    pub fn add_to(&self, y: &Tensor, x: &Tensor) -> Result<()> {
        let shape = self.op().shape;
        let rows = |tensor: &Tensor| tensor.dims().split_last().map(|(last, outer)| (outer.to_vec(), *last));
        match (rows(y), rows(x)) {
            (Some((y_rows, d_out)), Some((x_rows, d_in)))
                if y_rows == x_rows && (d_out, d_in) == (shape.d_out(), shape.d_in()) => {}
            _ => bail!(
                "y is {:?} and x is {:?}, which the adapter of {}, {shape}, does not fit",
                y.shape(),
                x.shape(),
                self.module()
            ),
        }
        if y.track_op() || x.track_op() {
            bail!(
                "y or x is tracked for gradients, which a sum in place has none of: detach it, or use KronLinear"
            );
        }
        if y.elem_count() == 0 {
            return Ok(());
        }
        y.inplace_op3(&x.contiguous()?, self.theta(), &Residual(*self.op()))
    }
}

struct Residual(KronOp);

impl Residual {
    fn add<S: DeviceOps>(&self, y: (&mut S, &Layout), inputs: ForwardInputs<S>) -> Result<()> {
        let (y, layout) = y;
        let (dtype, x_dtype, theta) = (y.dtype(), inputs.x.0.dtype(), inputs.theta.0.dtype());
        if (x_dtype, theta) != (dtype, DType::F32) {
            bail!("y is {dtype:?}, x {x_dtype:?} and θ {theta:?}, but x has the dtype of y, and θ is F32");
        }
        with_activation!("y is", dtype, E => {
            // The passes take a storage as a whole.
            let whole = S::len_of::<E>(y)?;
            if range(layout)? != (0..whole) {
                bail!("y is {:?} within a storage of {whole} elements, but it is all of it", layout.shape());
            }
            let term = Term { op: self.0, key: None, output: 0 };
            S::forward::<E>(&[term], inputs, y).map(|_| ())
        })
    }
}

impl InplaceOp3 for Residual {
    fn name(&self) -> &'static str {
        "kron-residual"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        y_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        theta: &CpuStorage,
        theta_layout: &Layout,
    ) -> Result<()> {
        self.add((y, y_layout), ForwardInputs { theta: (theta, theta_layout), x: (x, x_layout) })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        y: &mut CudaStorage,
        y_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
        theta: &CudaStorage,
        theta_layout: &Layout,
    ) -> Result<()> {
        self.add((y, y_layout), ForwardInputs { theta: (theta, theta_layout), x: (x, x_layout) })
    }
}
