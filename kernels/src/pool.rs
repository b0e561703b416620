//! [`DevicePool`]: adapters of one shape in device memory.

use kron_core::{Error, KronOp, Result};

use crate::check;
use crate::device::DeviceSlice;

/// Adapters of one shape whose θ lie in one buffer of device memory; checked once, for any number of calls.
///
/// Ranks may differ: an adapter of a lower rank than the pool's has zeros in the last columns of B and the last rows of
/// C, whose gradient is 0. Adapters of another A or of other sizes are other pools. A call leaves the rows alone that
/// have no slot of its pool, so one call for each pool, with a table of its own, serves rows of all of them.
#[derive(Clone, Copy, Debug)]
pub struct DevicePool<'a> {
    pub(crate) op: KronOp,
    pub(crate) theta: DeviceSlice<'a, f32>,
    pub(crate) slots: usize,
    pub(crate) stride: usize,
    pub(crate) scales: Option<DeviceSlice<'a, f32>>,
}

impl<'a> DevicePool<'a> {
    /// Returns the pool of `slots` adapters: θ of slot i, \[A | B | C\], starts at element i·`stride`.
    ///
    /// # Errors
    /// Fails without a slot, with more than 2³⁰, on a stride below the length of θ, on a buffer that is too
    /// short, and if a size exceeds the kernels' integers.
    pub fn new(op: KronOp, theta: DeviceSlice<'a, f32>, slots: usize, stride: usize) -> Result<Self> {
        crate::problem::check_sizes(&op.shape)?;
        crate::problem::check_segments(&op.shape, 0, slots)?;
        let pool = Self { op, theta, slots, stride, scales: None };
        pool.check_len("theta", theta.len())?;
        Ok(pool)
    }

    /// Returns the pool with an s for each slot, in the place of the op's.
    ///
    /// # Errors
    /// Fails if there are fewer elements than slots.
    pub fn with_scales(self, scales: DeviceSlice<'a, f32>) -> Result<Self> {
        check::len("scales", scales.len(), self.slots)?;
        Ok(Self { scales: Some(scales), ..self })
    }

    /// The adapters' shape and dropout, and their scale unless there are scales.
    pub const fn op(&self) -> &KronOp {
        &self.op
    }

    /// Number of adapters.
    pub const fn slots(&self) -> usize {
        self.slots
    }

    /// Elements from one slot's θ, or gradient, to the next.
    pub const fn stride(&self) -> usize {
        self.stride
    }

    /// Fails unless a buffer has [A | B | C] of every slot.
    pub(crate) fn check_len(&self, what: &'static str, len: usize) -> Result<()> {
        let (params, rule) = (self.op.shape.params(), |rule| Error::Buffer {
            what,
            got: format!("{len} elements in slots of {}", self.stride),
            rule,
        });
        if self.stride < params {
            return Err(rule(format!("a slot has at least the {params} elements of [A | B | C]")));
        }
        if len < check::size(what, self.slots - 1, self.stride)?.saturating_add(params) {
            return Err(rule(format!("{} slots need more", self.slots)));
        }
        Ok(())
    }
}
