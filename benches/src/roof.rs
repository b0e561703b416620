//! The roof: the copy bandwidth and the multiply-add rate, which bound every engine.

use kron_core::probe;
use kron_core::{Dtype, Isa, Result};

use crate::problem::Cost;
use crate::record::{Rate, Roof};

/// Measures both rates on `threads` threads of rayon's current pool.
///
/// # Errors
/// Fails for an instruction set that this machine lacks.
pub fn measure(isa: Isa, dtypes: &[Dtype], cache_bytes: usize, threads: usize) -> Result<Roof> {
    let rate = |&dtype: &Dtype| {
        let flops_per_s = probe::mul_add_rate(isa, dtype, threads)?;
        Ok(Rate { dtype: dtype.to_string(), flops_per_s })
    };
    // Far more bytes than the cache holds. The best of three, because a roof that other load on the
    // machine has lowered would flatter every engine.
    let copies = (0..3).map(|_| probe::copy_rate(4 * cache_bytes, threads));
    Ok(Roof {
        copy_bytes_per_s: copies.fold(0.0, f64::max),
        flops_per_s: dtypes.iter().map(rate).collect::<Result<_>>()?,
    })
}

impl Roof {
    /// Returns the least seconds for `cost`: the longer of the times for its bytes and for its flops.
    pub fn seconds(&self, cost: Cost, dtype: &str) -> f64 {
        (cost.bytes / self.copy_bytes_per_s).max(cost.flops / self.flops(dtype))
    }

    /// Returns the float operations per second of a dtype; NaN if it was not measured.
    pub fn flops(&self, dtype: &str) -> f64 {
        self.flops_per_s.iter().find(|r| r.dtype == dtype).map_or(f64::NAN, |r| r.flops_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roof_is_the_slower_of_bytes_and_flops() {
        let roof = Roof {
            copy_bytes_per_s: 10.0,
            flops_per_s: vec![Rate { dtype: "f32".into(), flops_per_s: 100.0 }],
        };
        assert_eq!(roof.seconds(Cost { bytes: 50.0, flops: 100.0 }, "f32"), 5.0);
        assert_eq!(roof.seconds(Cost { bytes: 5.0, flops: 100.0 }, "f32"), 1.0);
    }
}
