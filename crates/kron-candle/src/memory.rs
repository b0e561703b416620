//! [`Memory`]: what an adapted layer asks of a kind of candle's memory. The
//! ops are written once over it; [`host`](crate::host) is it on the CPU,
//! `cuda` (feature `cuda`) on a GPU.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, DType, DeviceLocation, Layout, Result, Shape, Storage, Tensor, WithDType, bail,
};
use kron_core::{DropoutKey, Element, KronOp};

/// A tensor as an op gets it.
pub(crate) type Operand<'a, M> = (&'a M, &'a Layout);

/// What activations are made of.
#[cfg(not(feature = "cuda"))]
pub(crate) trait Number: Element + WithDType + OnHost {}
/// What activations are made of.
#[cfg(feature = "cuda")]
pub(crate) trait Number: Element + WithDType + OnHost + candle_core::cuda_backend::CudaDType {}

/// candle lends the numbers of a CPU storage for reading only.
pub(crate) trait OnHost: Sized {
    fn of_mut(storage: &mut CpuStorage) -> Option<&mut [Self]>;
}

macro_rules! number {
    ($type:ty, $variant:ident) => {
        impl Number for $type {}
        impl OnHost for $type {
            fn of_mut(storage: &mut CpuStorage) -> Option<&mut [Self]> {
                match storage {
                    CpuStorage::$variant(numbers) => Some(numbers),
                    _ => None,
                }
            }
        }
    };
}
number!(f32, F32);
number!(half::f16, F16);
number!(half::bf16, BF16);

/// Numbers on one kind of device. Matrices are contiguous and in one of the
/// types of [`Number`]; θ, T and dθ are float32.
pub(crate) trait Memory: BackendStorage<Device: BackendDevice<Storage = Self>> {
    /// The storage, where it is of this kind.
    fn of(storage: &Storage) -> Option<&Self>;
    /// The storage of a new tensor.
    fn into_storage(self) -> Storage;

    /// X·M for n × k and k × m; M has any strides.
    fn product(x: Operand<Self>, m: Operand<Self>, rows: usize) -> Result<Self>;
    /// Adds a bias, d_out, to every row of `y`.
    fn add_bias<E: Number>(y: &mut Self, bias: Operand<Self>) -> Result<()>;

    /// Adds the adapter's output to `y`, n × d_out; returns T.
    fn forward<E: Number>(
        op: &KronOp,
        operands: Forward<Self>,
        y: &mut Self,
        key: Option<DropoutKey>,
    ) -> Result<Self>;
    /// dθ; dX is added to `dx`, n × d_in, where it is wanted.
    fn backward<E: Number>(
        op: &KronOp,
        operands: Backward<Self>,
        dx: Option<&mut Self>,
        key: Option<DropoutKey>,
    ) -> Result<Self>;
    /// W + ΔW, d_out × d_in, in place.
    fn merge<E: Number>(op: &KronOp, theta: Operand<Self>, w: &mut Self) -> Result<()>;
}

/// What a forward pass reads.
pub(crate) struct Forward<'a, M> {
    pub theta: Operand<'a, M>,
    pub x: Operand<'a, M>,
}

/// What a backward pass reads.
pub(crate) struct Backward<'a, M> {
    pub theta: Operand<'a, M>,
    pub x: Operand<'a, M>,
    pub t: Operand<'a, M>,
    pub dy: Operand<'a, M>,
}

/// Evaluates an expression with `$E` for the type of numbers.
macro_rules! with_number {
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

/// Evaluates an expression with `$M` for the kind of memory of a device.
macro_rules! with_memory {
    ($device:expr, $M:ident => $run:expr) => {
        match $device {
            candle_core::Device::Cpu => {
                type $M = candle_core::CpuStorage;
                $run
            }
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(_) => {
                type $M = candle_core::CudaStorage;
                $run
            }
            other => candle_core::bail!("a tensor is on {:?}, where no adapter runs", other.location()),
        }
    };
}
pub(crate) use {with_memory, with_number};

/// Calls `f` with a tensor's storage, which has to be at `place`.
pub(crate) fn on<M: Memory, T>(
    place: DeviceLocation,
    tensor: &Tensor,
    f: impl FnOnce(Operand<M>) -> Result<T>,
) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match M::of(&storage) {
        Some(storage) if storage.device().location() == place => f((storage, layout)),
        _ => {
            bail!("a tensor is on {:?}, but the adapter's input is on {place:?}", tensor.device().location())
        }
    }
}

/// A tensor that no op made.
pub(crate) fn tensor<M: Memory>(storage: M, shape: impl Into<Shape>) -> Tensor {
    Tensor::from_storage(storage.into_storage(), shape, BackpropOp::none(), false)
}

/// Zeros where `like` is.
pub(crate) fn zeros<M: Memory>(like: &M, shape: &Shape, dtype: DType) -> Result<M> {
    like.device().zeros_impl(shape, dtype)
}

/// A copy in memory of its own, without gaps.
pub(crate) fn copy<M: Memory>((storage, layout): Operand<M>) -> Result<M> {
    let mut copy = zeros(storage, layout.shape(), storage.dtype())?;
    storage.copy_strided_src(&mut copy, 0, layout)?;
    Ok(copy)
}

/// Where a contiguous operand lies in its storage.
pub(crate) fn range(layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("an operand of an adapter has strides {:?}, but it is contiguous", layout.stride()),
    }
}
