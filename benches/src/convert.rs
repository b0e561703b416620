//! Conversion between 16-bit elements and float32, for engines whose products are float32.

use half::{bf16, f16};
use kron_core::{Dtype, Element};

/// Returns `from` as float32: the same memory for f32, else converted into `scratch`.
pub fn widen<'a, E: Element>(from: &'a [E], scratch: &'a mut [f32]) -> &'a [f32] {
    if E::DTYPE == Dtype::F32 {
        return bytemuck::cast_slice(from);
    }
    let to = &mut scratch[..from.len()];
    widen_into(from, to);
    to
}

/// Converts `from` to float32.
pub fn widen_into<E: Element>(from: &[E], to: &mut [f32]) {
    // Dispatched so that the loop is compiled for AVX2 and AVX-512 too.
    pulp::Arch::new().dispatch(|| match E::DTYPE {
        Dtype::F32 => to.copy_from_slice(bytemuck::cast_slice(from)),
        Dtype::Bf16 => {
            for (to, from) in to.iter_mut().zip(bytemuck::cast_slice::<E, bf16>(from)) {
                *to = f32::from_bits(u32::from(from.to_bits()) << 16);
            }
        }
        Dtype::F16 => {
            half::slice::HalfFloatSliceExt::convert_to_f32_slice(bytemuck::cast_slice::<E, f16>(from), to)
        }
    });
}

/// Adds times·add to `to`, rounded once.
pub fn add_into<E: Element>(to: &mut [E], add: &[f32], times: f32) {
    pulp::Arch::new().dispatch(|| {
        for (to, add) in to.iter_mut().zip(add) {
            *to = E::from_f32(to.to_f32() + times * add);
        }
    });
}

/// Rounds `from` into `to`.
pub fn narrow_into<E: Element>(from: &[f32], to: &mut [E]) {
    pulp::Arch::new().dispatch(|| {
        for (to, from) in to.iter_mut().zip(from) {
            *to = E::from_f32(*from);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_is_exact_and_adding_rounds_once() {
        fn check<E: Element>() {
            let values: Vec<f32> = (0..97).map(|i| (i as f32 - 40.0) * 0.37).collect();
            let mut half = vec![E::from_f32(0.0); 97];
            narrow_into(&values, &mut half);
            let mut wide = vec![0.0; 97];
            widen_into(&half, &mut wide);
            let exact: Vec<f32> = half.iter().map(|v| v.to_f32()).collect();
            assert_eq!(wide, exact);
            let before = half.clone();
            add_into(&mut half, &values, 0.5);
            for ((now, old), v) in half.iter().zip(before).zip(values) {
                assert_eq!(now.to_f32(), E::from_f32(old.to_f32() + 0.5 * v).to_f32());
            }
        }
        check::<f32>();
        check::<f16>();
        check::<bf16>();
    }
}
