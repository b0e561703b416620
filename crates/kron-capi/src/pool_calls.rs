//! The functions of `kron.h` over the rows of a pool.

use std::ffi::c_int;

use kron_core::Result;

use crate::pool_types::{KronBackwardPool, KronForwardPool, KronPool};
use crate::types::{KronDevice, KronManySizes};
use crate::{call, pool, refuse, status};

/// Returns the device of a call.
fn device(device: Option<&KronDevice>) -> Result<KronDevice> {
    device.copied().ok_or_else(|| refuse("device", "a null pointer", "a pool lies in the memory of a device"))
}

/// Writes the lengths of the buffers of calls over at most `rows` rows of a pool to *sizes. They suffice for every
/// call over fewer rows too. Loads the device's kernels as kron_sizes does.
///
/// # Safety
/// Each pointer is null or points to its struct, whose own pointers hold the elements that the struct describes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_pool_sizes(
    device: *const KronDevice,
    pool: *const KronPool,
    rows: usize,
    sizes: *mut KronManySizes,
) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let (device, pool) = unsafe { (self::device(device.as_ref())?, *call::shared("pool", pool)?) };
        // SAFETY: the caller's promise.
        unsafe { pool::sizes(device, &pool, rows, call::exclusive("sizes", sizes)?) }
    })
}

/// Computes kron_forward_segments on a device, for the rows of a pool's adapters. The launches depend on the numbers
/// of rows and slots alone, so a captured graph can be replayed with other numbers in the table. Each row has the
/// bits of a call over the rows of its adapter alone.
///
/// A null device returns KRON_INVALID. The table is read on the device: see status in KronForwardPool.
///
/// # Safety
/// As kron_pool_sizes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_forward_pool(
    device: *const KronDevice,
    pool: *const KronPool,
    call: *const KronForwardPool,
) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let (device, pool) = unsafe { (self::device(device.as_ref())?, *call::shared("pool", pool)?) };
        // SAFETY: the caller's promise.
        unsafe { pool::run(device, pool, *call::shared("call", call)?) }
    })
}

/// Adds to the gradient of each slot that has rows, and computes the rows of dX where dx is not null.
///
/// # Safety
/// As kron_pool_sizes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_backward_pool(
    device: *const KronDevice,
    pool: *const KronPool,
    call: *const KronBackwardPool,
) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let (device, pool) = unsafe { (self::device(device.as_ref())?, *call::shared("pool", pool)?) };
        // SAFETY: the caller's promise.
        unsafe { pool::run(device, pool, *call::shared("call", call)?) }
    })
}
