//! [`DeviceOps`]: the operations of an adapted layer on one of candle's storages.
//!
//! The custom ops are written once over this trait. `cpu.rs` implements it for the CPU, `cuda.rs` (feature `cuda`)
//! for a GPU.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, DType, DeviceLocation, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};
use kron_core::{DropoutKey, Element, KronOp};

use crate::base::FrozenLinear;

/// Tensor operand of a custom op: its storage and layout.
pub(crate) type Operand<'a, S> = (&'a S, &'a Layout);

/// Element type of activations.
#[cfg(not(feature = "cuda"))]
pub(crate) trait Activation: Element + WithDType + CpuSliceMut {}
/// Element type of activations.
#[cfg(feature = "cuda")]
pub(crate) trait Activation:
    Element + WithDType + CpuSliceMut + candle_core::cuda_backend::CudaDType
{
}

/// Mutable access to the elements of a CPU storage, which candle itself lends only for reading.
pub(crate) trait CpuSliceMut: Sized {
    fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! activation {
    ($type:ty, $variant:ident) => {
        impl Activation for $type {}
        impl CpuSliceMut for $type {
            fn slice_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(elements) => Some(elements),
                    _ => None,
                }
            }
        }
    };
}
activation!(f32, F32);
activation!(half::f16, F16);
activation!(half::bf16, BF16);

/// Operations of an adapted layer on the storage of one kind of device.
///
/// Matrices are contiguous, with elements of an [`Activation`] type; θ, T and dθ are float32.
pub(crate) trait DeviceOps: BackendStorage<Device: BackendDevice<Storage = Self>> {
    /// Returns the storage if it is of this kind.
    fn of(storage: &Storage) -> Option<&Self>;
    /// Converts into the storage of a new tensor.
    fn into_storage(self) -> Storage;

    /// Returns the number of elements of type E.
    fn len_of<E: Activation>(&self) -> Result<usize>;

    /// Computes the product of x, n × k, and m, k × cols; m has any strides.
    fn product(x: Operand<Self>, m: Operand<Self>, rows: usize) -> Result<Self>;
    /// Adds a bias, d_out, to every row of `y`.
    fn add_bias<E: Activation>(y: &mut Self, bias: Operand<Self>) -> Result<()>;

    /// Computes base(x).
    fn base_forward(base: &dyn FrozenLinear, x: Operand<Self>) -> Result<Self>;
    /// Computes the gradient of base(x) with respect to x.
    fn base_backward(base: &dyn FrozenLinear, dy: Operand<Self>) -> Result<Self>;

    /// Adds the outputs of the terms to `y`, n × d_out; returns T of all terms.
    ///
    /// θ of the terms lie one after the other.
    fn forward<E: Activation>(terms: &[Term], inputs: ForwardInputs<Self>, y: &mut Self) -> Result<Self>;
    /// Returns dθ of all terms; adds their dX to `dx`, n × d_in, if given.
    fn backward<E: Activation>(
        terms: &[Term],
        inputs: BackwardInputs<Self>,
        dx: Option<&mut Self>,
    ) -> Result<Self>;
    /// Adds ΔW to W, d_out × d_in, in place.
    fn merge<E: Activation>(op: &KronOp, theta: Operand<Self>, w: &mut Self) -> Result<()>;
}

/// Inputs of a forward pass.
pub(crate) struct ForwardInputs<'a, S> {
    pub theta: Operand<'a, S>,
    pub x: Operand<'a, S>,
}

/// One adapter of a call.
#[derive(Clone, Copy)]
pub(crate) struct Term {
    pub op: KronOp,
    pub key: Option<DropoutKey>,
    /// Number of the Y that it adds to.
    pub output: usize,
}

/// Inputs of a backward pass.
pub(crate) struct BackwardInputs<'a, S> {
    pub theta: Operand<'a, S>,
    pub x: Operand<'a, S>,
    pub t: Operand<'a, S>,
    pub dy: Operand<'a, S>,
}

/// Evaluates an expression with `$E` as the type of activations.
macro_rules! with_activation {
    ($what:literal, $dtype:expr, $E:ident => $run:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $E = f32;
                $run
            }
            candle_core::DType::F16 => {
                type $E = half::f16;
                $run
            }
            candle_core::DType::BF16 => {
                type $E = half::bf16;
                $run
            }
            other => candle_core::bail!("{} {other:?}, but an adapter takes f32, f16 or bf16", $what),
        }
    };
}

/// Evaluates an expression with `$S` as the storage type of a device.
macro_rules! with_device_ops {
    ($device:expr, $S:ident => $run:expr) => {
        match $device {
            candle_core::Device::Cpu => {
                type $S = candle_core::CpuStorage;
                $run
            }
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(_) => {
                type $S = candle_core::CudaStorage;
                $run
            }
            other => candle_core::bail!("a tensor is on {:?}, where no adapter runs", other.location()),
        }
    };
}
pub(crate) use {with_activation, with_device_ops};

/// Calls `f` with a tensor's storage; fails if it is on another device than `location`.
pub(crate) fn on<S: DeviceOps, T>(
    location: DeviceLocation,
    tensor: &Tensor,
    f: impl FnOnce(Operand<S>) -> Result<T>,
) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match S::of(&storage) {
        Some(storage) if storage.device().location() == location => f((storage, layout)),
        _ => {
            bail!(
                "a tensor is on {:?}, but the adapter's input is on {location:?}",
                tensor.device().location()
            )
        }
    }
}

/// Calls `f` with the storages of several tensors; fails if one is on another device than `location`.
pub(crate) fn on_all<S: DeviceOps, T>(
    location: DeviceLocation,
    tensors: &[Tensor],
    f: impl FnOnce(&[Operand<S>]) -> Result<T>,
) -> Result<T> {
    let held: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let of = |(storage, layout)| match S::of(storage) {
        Some(storage) if storage.device().location() == location => Ok((storage, layout)),
        _ => bail!("a tensor of several is not on {location:?}, where the adapter's input is"),
    };
    let operands = held.iter().map(|(storage, layout)| of((&**storage, *layout)));
    f(&operands.collect::<Result<Vec<Operand<S>>>>()?)
}

/// Makes a tensor without an autograd graph.
pub(crate) fn tensor<S: DeviceOps>(storage: S, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(storage.into_storage(), shape, BackpropOp::none(), false)
}

/// Makes a tensor of one dimension from all float32 elements of a storage, without an autograd graph.
pub(crate) fn flat<S: DeviceOps>(storage: S) -> Result<Tensor> {
    let len = storage.len_of::<f32>()?;
    Ok(tensor(storage, len))
}

/// Allocates zeros on the device of `like`.
pub(crate) fn zeros<S: DeviceOps>(like: &S, shape: &Shape, dtype: DType) -> Result<S> {
    like.device().zeros_impl(shape, dtype)
}

/// Copies an operand into new contiguous memory.
pub(crate) fn copy<S: DeviceOps>((storage, layout): Operand<S>) -> Result<S> {
    let mut copy = zeros(storage, layout.shape(), storage.dtype())?;
    storage.copy_strided_src(&mut copy, 0, layout)?;
    Ok(copy)
}

/// Returns the range of a contiguous operand in its storage.
pub(crate) fn range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("an operand of an adapter has strides {:?}, but it is contiguous", layout.stride()),
    }
}
