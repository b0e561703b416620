//! [`Float`]: the element types of the tests.

use half::{bf16, f16};
use kron_core::Element;

/// An activation type of the tests.
pub trait Float: Element + PartialEq {
    fn of(v: f32) -> Self;
    fn to(self) -> f32;
    fn bits(self) -> u32;
}
impl Float for f32 {
    fn of(v: f32) -> Self {
        v
    }
    fn to(self) -> f32 {
        self
    }
    fn bits(self) -> u32 {
        self.to_bits()
    }
}
impl Float for f16 {
    fn of(v: f32) -> Self {
        Self::from_f32(v)
    }
    fn to(self) -> f32 {
        self.to_f32()
    }
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}
impl Float for bf16 {
    fn of(v: f32) -> Self {
        Self::from_f32(v)
    }
    fn to(self) -> f32 {
        self.to_f32()
    }
    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}
