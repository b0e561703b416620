//! [`FrozenLinear`]: the base of an adapted layer.

use candle_core::backend::BackendStorage;
use candle_core::op::Add;
use candle_core::{CpuStorage, Layout, Result};
#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, bail};
use kron_core::LayerDims;

/// Frozen linear map y = x·Wᵀ + bias with its gradient with respect to x.
///
/// It is the base of an adapter in [`KronLinear::over`](crate::KronLinear::over). The trait has both passes, since a
/// module without a backward pass, such as candle's `QMatMul`, would silently cut the gradients of all layers below.
/// Operands are contiguous, … × d_in and … × d_out, in the dtype of the activations; results are of the same dtype.
///
/// ```
/// # use std::sync::Arc;
/// use kron_candle::{KronLinear, QuantisedLinear, TrainableDelta};
///
/// fn adapt(base: QuantisedLinear, delta: TrainableDelta) -> candle_core::Result<KronLinear> {
///     KronLinear::over(Arc::new(base), delta)
/// }
/// ```
///
/// The same code does not compile for candle's type:
///
/// ```compile_fail,E0277
/// # use std::sync::Arc;
/// # use candle_core::quantized::QMatMul;
/// # use kron_candle::{KronLinear, TrainableDelta};
/// fn adapt(base: QMatMul, delta: TrainableDelta) -> candle_core::Result<KronLinear> {
///     KronLinear::over(Arc::new(base), delta)
/// }
/// ```
pub trait FrozenLinear: std::fmt::Debug + Send + Sync {
    /// Returns the sizes.
    fn dims(&self) -> LayerDims;

    /// Computes x·Wᵀ + bias.
    ///
    /// # Errors
    /// x has a dtype that is not supported.
    fn cpu_forward(&self, x: &CpuStorage, layout: &Layout) -> Result<CpuStorage>;

    /// Computes dX = dY·W.
    ///
    /// # Errors
    /// dY has a dtype that is not supported.
    fn cpu_backward(&self, dy: &CpuStorage, layout: &Layout) -> Result<CpuStorage>;

    /// Adds dX = dY·W to `dx`, as long as [`FrozenLinear::cpu_backward`]'s result and of its dtype.
    ///
    /// # Errors
    /// dY has a dtype that is not supported, or `dx` another dtype.
    fn cpu_backward_add(&self, dy: &CpuStorage, layout: &Layout, dx: &mut CpuStorage) -> Result<()> {
        let more = self.cpu_backward(dy, layout)?;
        let layout =
            Layout::contiguous(layout.shape().elem_count() / self.dims().d_out.max(1) * self.dims().d_in);
        *dx = dx.binary_impl::<Add>(&more, &layout, &layout)?;
        Ok(())
    }

    /// Computes x·Wᵀ + bias on a CUDA device.
    ///
    /// # Errors
    /// The base does not run on CUDA devices, or candle fails.
    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, _: &CudaStorage, _: &Layout) -> Result<CudaStorage> {
        bail!("the base {self:?} does not run on a CUDA device")
    }

    /// Computes dX = dY·W on a CUDA device.
    ///
    /// # Errors
    /// The base does not run on CUDA devices, or candle fails.
    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, _: &CudaStorage, _: &Layout) -> Result<CudaStorage> {
        bail!("the base {self:?} does not run on a CUDA device")
    }
}
