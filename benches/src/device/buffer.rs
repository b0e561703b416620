//! The buffers of a program, by name.

/// A buffer that a step reads or writes, for n tokens. Its elements have the activations' type, or
/// float32 if [`Buffer::is_float`] is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Buffer {
    /// n × d_in.
    X,
    /// n × d_out.
    Y,
    /// n × d_out.
    Dy,
    /// n × d_in.
    Dx,
    /// n × a_in × r: T as our kernels keep it for backward.
    T,
    /// a_in × n × r: T of the products, kept for backward.
    TMid,
    /// a_out × n × r: U = A·T, kept for backward.
    UMid,
    /// d_out × d_in: the layer's weight, into which `merge-per-step` merges.
    W,
    /// \[A | B | C\], and its gradient, for our kernels.
    Theta,
    Grad,
    /// The factors, and their gradients, for the products.
    A,
    B,
    C,
    DA,
    DB,
    DC,
    /// a_in × n × r, and a_out × n × r: gradients of T and U.
    DtMid,
    DuMid,
    /// The terms of a sum: matrices one after the other.
    Parts,
    /// Ones, which add up the parts in a product.
    Ones,
    /// d_out × d_in: ΔW, and its gradient.
    Delta,
    DDelta,
    /// b_out × c_in: B·C, and its gradient.
    Inner,
    DInner,
}

impl Buffer {
    /// Returns true if its elements are float32 whatever the activations are.
    pub const fn is_float(self) -> bool {
        matches!(self, Buffer::T | Buffer::Theta | Buffer::Grad)
    }

    /// Returns true if every set of activations has its own.
    pub const fn of_set(self) -> bool {
        use Buffer::{Dx, Dy, T, TMid, UMid, X, Y};
        matches!(self, X | Y | Dy | Dx | T | TMid | UMid)
    }

    /// Returns true if the trainer has it in any case, so that it is not extra memory of an engine.
    pub const fn is_given(self) -> bool {
        use Buffer::{A, B, C, DA, DB, DC, Dx, Dy, Grad, Theta, W, X, Y};
        matches!(self, X | Y | Dy | Dx | W | Theta | Grad | A | B | C | DA | DB | DC)
    }
}
