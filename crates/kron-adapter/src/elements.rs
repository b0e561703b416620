//! Elements of tensors: the one dispatch on dtype, decoding from a file's bytes,
//! and the one check that all values are finite.
//!
//! ```
//! use kron_adapter::elements::{element_dtype, first_not_finite};
//! use kron_adapter::with_dtype;
//! use kron_core::{Dtype, Element};
//!
//! let dtype = element_dtype(safetensors::Dtype::BF16).expect("bf16 holds weights");
//! assert_eq!(with_dtype!(dtype, E => size_of::<E>()), 2);
//! assert_eq!(first_not_finite(&[1.0f32, f32::NAN]), Some(1));
//! ```

#[doc(hidden)]
pub use half::{bf16, f16};
use kron_core::{Dtype, Element};

/// Evaluates an expression with a type name bound to the element type of a
/// [`Dtype`]: `with_dtype!(dtype, E => f::<E>(x))`.
///
/// A match without a wildcard: a new dtype does not compile until it is added here.
#[macro_export]
macro_rules! with_dtype {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::elements::KronDtype::F32 => {
                type $element = f32;
                $body
            }
            $crate::elements::KronDtype::F16 => {
                type $element = $crate::elements::f16;
                $body
            }
            $crate::elements::KronDtype::Bf16 => {
                type $element = $crate::elements::bf16;
                $body
            }
        }
    };
}

#[doc(hidden)]
pub use kron_core::Dtype as KronDtype;

/// Returns the dtype of a safetensors tensor that can hold weights, `None` for any other.
pub const fn element_dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::BF16 => Some(Dtype::Bf16),
        _ => None,
    }
}

/// Returns the dtype that a file has for elements of a [`Dtype`]: the inverse of [`element_dtype`].
pub const fn file_dtype(dtype: Dtype) -> safetensors::Dtype {
    match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
    }
}

/// Decodes the values of a little-endian buffer; bytes after the last whole value are ignored.
pub fn decode<T: bytemuck::Pod>(bytes: &[u8]) -> impl ExactSizeIterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).map(|chunk| {
        let mut value = T::zeroed();
        let to = bytemuck::bytes_of_mut(&mut value);
        to.copy_from_slice(chunk);
        if cfg!(target_endian = "big") {
            to.reverse();
        }
        value
    })
}

/// Returns the index of the first value that is NaN or infinite.
pub fn first_not_finite<E: Element>(values: &[E]) -> Option<usize> {
    // The common case has no branch per value, so that the loop is vectorised.
    if values.iter().fold(true, |all, v| all & v.to_f32().is_finite()) {
        return None;
    }
    values.iter().position(|v| !v.to_f32().is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_reaches_its_own_element() {
        for dtype in Dtype::ALL {
            assert_eq!(with_dtype!(dtype, E => <E as Element>::DTYPE), dtype);
            assert_eq!(element_dtype(file_dtype(dtype)), Some(dtype));
        }
    }

    #[test]
    fn values_are_little_endian_and_a_rest_is_ignored() {
        let bytes = [1.5f32.to_le_bytes(), (-2.0f32).to_le_bytes()].concat();
        assert_eq!(decode::<f32>(&bytes[..7]).collect::<Vec<_>>(), [1.5]);
        assert_eq!(decode::<f32>(&bytes).collect::<Vec<_>>(), [1.5, -2.0]);
        assert_eq!(decode::<bf16>(&[0x80, 0x3f]).collect::<Vec<_>>(), [bf16::ONE]);
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found() {
        assert_eq!(first_not_finite::<f32>(&[]), None);
        assert_eq!(first_not_finite(&[f16::MAX, f16::MIN]), None);
        assert_eq!(first_not_finite(&[bf16::ZERO, bf16::NEG_INFINITY, bf16::NAN]), Some(1));
    }
}
