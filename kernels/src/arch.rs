//! [`Arch`]: memory rates of GPU models, for predictions.

/// A GPU model's memory rate, for predictions only; no plan depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arch {
    /// The model.
    pub name: &'static str,
    /// Its compilation target.
    pub sm: &'static str,
    /// Bytes read and written in a µs by a plain copy, or the datasheet's rate.
    pub bytes_per_us: f64,
    /// Source of the rate.
    pub source: &'static str,
}

/// The models with predictions.
pub const ARCHS: [Arch; 5] = [
    Arch { name: "A100 80GB SXM", sm: "sm_80", bytes_per_us: 2.039e6, source: "datasheet" },
    Arch { name: "L40S", sm: "sm_89", bytes_per_us: 0.864e6, source: "datasheet" },
    Arch { name: "H100 SXM", sm: "sm_90", bytes_per_us: 3.35e6, source: "datasheet" },
    Arch { name: "H200", sm: "sm_90", bytes_per_us: 4.3e6, source: "a device copy, measured" },
    Arch { name: "RTX 5090", sm: "sm_120", bytes_per_us: 1.792e6, source: "datasheet" },
];
