//! Device and floating-point type of a run.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;
use kron_candle::Operands;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, invalid};

/// Device and precision.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compute {
    /// Device of all tensors.
    pub device: Device,
    /// Type of the base's weights and of activations; on the CPU, bf16 is that of the frozen matrices, and of the
    /// activations that are multiplied with them.
    ///
    /// Adapters, head, optimizer and loss are float32, and so are the sums inside norms and softmax.
    pub precision: Precision,
}

/// Largest ordinal of a GPU.
const MAX_ORDINAL: usize = 1023;

/// `cpu` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The GPU with this ordinal; needs the feature `cuda`.
    Cuda(usize),
}

/// Floating-point type.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Float32.
    #[default]
    F32,
    /// Bfloat16.
    Bf16,
    /// Float16, with a scaled loss so that small gradients do not vanish.
    F16,
}

impl Compute {
    /// Returns candle's type of the activations.
    ///
    /// On the CPU, bfloat16 is that of the numbers that are multiplied; all others are float32.
    pub const fn dtype(self) -> DType {
        match (self.device, self.precision) {
            (Device::Cpu, Precision::Bf16) | (_, Precision::F32) => DType::F32,
            (_, Precision::Bf16) => DType::BF16,
            (_, Precision::F16) => DType::F16,
        }
    }

    /// Returns the numbers that products with frozen matrices on the CPU multiply.
    pub const fn operands(self) -> Operands {
        match self.precision {
            Precision::Bf16 => Operands::Bf16,
            Precision::F32 | Precision::F16 => Operands::Float32,
        }
    }
}

impl Device {
    /// Returns the device of a rank, by its number among the ranks of its host: the CPU, or the GPU that lies so many
    /// after this one, or the only GPU where the launcher shows each rank one.
    ///
    /// # Errors
    /// The host has too few GPUs, or the driver does not answer.
    pub fn of_rank(self, local: usize) -> Result<Self> {
        match (self, local) {
            #[cfg(feature = "cuda")]
            (Self::Cuda(first), 1..) => gpu_of_rank(first, local).map(Self::Cuda),
            (own, _) => Ok(own),
        }
    }

    /// Opens the device in candle.
    ///
    /// # Errors
    /// The GPU does not exist, or the program was built without the feature `cuda`.
    pub fn open(self) -> Result<candle_core::Device> {
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(invalid(format!(
                "compute.device is {self}, but this program was built without the feature cuda"
            ))),
            Self::Cuda(ordinal) => candle_core::Device::new_cuda(ordinal).map_err(|e| {
                invalid(format!("compute.device is {self}, which cannot be used: {}", Error::from(e)))
            }),
        }
    }
}

/// Returns the ordinal of a rank's GPU, where the first rank of the host has GPU `first`.
///
/// # Errors
/// As [`Device::of_rank`].
#[cfg(feature = "cuda")]
pub(crate) fn gpu_of_rank(first: usize, local: usize) -> Result<usize> {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    let count = CudaContext::device_count().map_err(|e| invalid(format!("the GPUs: {e}")))?;
    match (usize::try_from(count).unwrap_or(0), first + local) {
        (1, _) if first == 0 => Ok(0),
        (count, gpu) if gpu < count => Ok(gpu),
        (count, gpu) => Err(invalid(format!(
            "rank {local} of this host takes cuda:{gpu}, but there are {count} GPUs: start as many ranks as GPUs"
        ))),
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let ordinal = text.strip_prefix("cuda:").map(str::parse);
        match (text, ordinal) {
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(Ok(ordinal))) if ordinal <= MAX_ORDINAL => Ok(Self::Cuda(ordinal)),
            _ => Err(invalid(format!(
                "{text:?} is not a device; devices are cpu, cuda:0, cuda:1, … cuda:{MAX_ORDINAL}"
            ))),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}
