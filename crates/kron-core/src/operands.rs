//! [`Operands`]: the precision of a product.

/// Numbers that a product multiplies; its sums are float32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Operands {
    /// Float32.
    #[default]
    Float32,
    /// Nearest bf16 numbers of both operands.
    Bf16,
}
