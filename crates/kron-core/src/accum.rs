//! [`Accum`]: overwrite an output or add to it.

/// Treatment of an output's old contents.
///
/// `Add` serves a frozen layer: Y holds the layer's own output, and the adapter's is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accum {
    /// Overwrites the output; its old contents are never read.
    Replace,
    /// Adds the result to the output, with one rounding.
    Add,
}
