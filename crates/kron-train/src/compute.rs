//! Where a model computes, and in which numbers.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::config::Method;
use crate::error::{Error, Result, invalid};

/// A device and the numbers on it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compute {
    /// Where everything is.
    pub device: Device,
    /// Of the base's weights and of activations. Adapters, head, optimizer and
    /// loss are float32, and so are the sums inside norms and softmax.
    pub precision: Precision,
}

/// `cpu` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// This machine's processor.
    #[default]
    Cpu,
    /// The GPU of this number; the program has to be built with the feature `cuda`.
    Cuda(usize),
}

/// A type of numbers.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Float32.
    #[default]
    F32,
    /// Bfloat16.
    Bf16,
    /// Float16; the loss is scaled, so that small gradients do not vanish.
    F16,
}

impl Compute {
    /// That a method can be trained so.
    ///
    /// # Errors
    /// Bfloat16 on the CPU, and every weight in half precision.
    pub fn check(self, method: Method) -> Result<()> {
        if self == (Self { device: Device::Cpu, precision: Precision::Bf16 }) {
            return Err(invalid(
                "compute.precision is bf16, but candle multiplies no bf16 matrices on the CPU",
            ));
        }
        if method == Method::Full && self.precision != Precision::F32 {
            return Err(invalid(
                "method full trains the weights themselves, which takes compute.precision f32",
            ));
        }
        Ok(())
    }
}

impl Precision {
    /// candle's name for it.
    pub const fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

impl Device {
    /// candle's device.
    ///
    /// # Errors
    /// A GPU that is not there, or any without the feature `cuda`.
    pub fn open(self) -> Result<candle_core::Device> {
        match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(invalid(format!(
                "compute.device is {self}, but this program was built without the feature cuda"
            ))),
            Self::Cuda(ordinal) => candle_core::Device::new_cuda(ordinal)
                .map_err(|e| invalid(format!("compute.device is {self}, which cannot be used: {e}"))),
        }
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
            (_, Some(Ok(ordinal))) => Ok(Self::Cuda(ordinal)),
            _ => Err(invalid(format!("{text:?} is no device: cpu and cuda:0, cuda:1, … are"))),
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
