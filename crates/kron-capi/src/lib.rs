//! The C interface of kron-lora: forward, backward and merge on host memory,
//! and on a CUDA device's with the feature `cuda`. `kron.h` declares it.
//!
//! A call takes a device (null is the host), an op and one struct of pointers,
//! and returns a status; [`kron_last_error`] returns the message. Matrices
//! have contiguous rows, `stride` elements apart; all sizes are in elements.
//! No panic crosses into C, and nothing is allocated that C would have to free.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod call;
#[allow(unsafe_code)]
mod device;
mod dispatch;
mod dtype;
mod fork;
#[allow(unsafe_code)]
mod group;
mod group_backend;
#[allow(unsafe_code)]
mod host;
mod overlap;
#[allow(unsafe_code)]
mod pointers;
#[allow(unsafe_code)]
mod pool;
#[allow(unsafe_code)]
mod pool_calls;
mod pool_types;
#[allow(unsafe_code)]
mod segments;
#[allow(unsafe_code)]
mod status;
#[allow(unsafe_code)]
mod team;
mod types;

use std::ffi::{c_char, c_int};

use kron_core::{Error, Pass};

pub use pool_calls::{kron_backward_pool, kron_forward_pool, kron_pool_sizes};
pub use pool_types::{KronBackwardPool, KronForwardPool, KronPool};
pub use status::{KRON_DEVICE_FAILED, KRON_INVALID, KRON_OK, KRON_PANICKED, KRON_UNAVAILABLE};
pub use types::{
    KRON_ABI, KRON_BF16, KRON_EMULATED, KRON_F16, KRON_F32, KronAdapter, KronBackward, KronBackwardGroup,
    KronBackwardSegments, KronDevice, KronForward, KronForwardGroup, KronForwardSegments, KronGroupDy,
    KronGroupY, KronKey, KronManySizes, KronMerge, KronOp, KronRunner, KronSizes, KronTask, KronTerm,
};

/// Returns the library's KRON_ABI, to be compared with the header's.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn kron_abi() -> u32 {
    KRON_ABI
}

/// Returns the error of this thread's last call in one sentence, empty after a
/// call that succeeded. The text lives until the thread's next call.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub extern "C" fn kron_last_error() -> *const c_char {
    status::last_error()
}

/// Sets the runner of this thread's calls on the host, so that they compute on threads of the caller's, such as
/// OpenMP's. Null is the library's own pool, as at the beginning. Results have the same bits on any threads. A forked
/// process ignores it.
///
/// # Safety
/// `runner` is null or does what KronRunner says, for as long as it is set.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_set_runner(runner: KronRunner) {
    team::set(runner);
}

/// Sets a key in device memory, whose numbers are added to those of the key of each of this thread's calls on a
/// device, modulo 2⁶⁴. They are read when the call's kernels run, so that each replay of a captured graph can have
/// another mask of dropout: change them between replays, and keep them from a step's forward to its backward. Null
/// adds nothing, as at the beginning. A call whose own key is null drops nothing.
///
/// # Safety
/// `key` is null or points to a KronKey in memory of the device of each call that this thread makes, for as long as
/// it is set and as work runs that was queued meanwhile, replays included.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_set_device_key(key: *const KronKey) -> c_int {
    status::guard(|| device::set_key(key))
}

/// Writes the number of CUDA devices to *count.
///
/// # Safety
/// `count` is null or points to an int.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_device_count(count: *mut c_int) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let count = unsafe { call::exclusive("count", count) }?;
        *count = device::count()?;
        Ok(())
    })
}

/// Writes the lengths of the buffers of a call over `rows` rows to *sizes. They suffice for every call
/// over fewer rows too, and never fall as `rows` grows.
///
/// The first call of a process on a CUDA device loads its kernels, which takes a while. This function is such a call:
/// after it no call on the device loads anything, allocates device memory or waits, so that calls can be captured
/// in a graph.
///
/// # Safety
/// Each pointer is null or points to its struct.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_sizes(
    device: *const KronDevice,
    op: *const KronOp,
    rows: usize,
    sizes: *mut KronSizes,
) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let (op, sizes) = unsafe { (call::shared("op", op)?.parse()?, call::exclusive("sizes", sizes)?) };
        // SAFETY: the caller's promise.
        let device = unsafe { device.as_ref() }.copied();
        *sizes = KronSizes {
            theta: op.shape.params(),
            t: call::t_len(&op, rows)?,
            forward: dispatch::workspace_len(device, &op, Pass::Forward, rows)?,
            backward: dispatch::workspace_len(device, &op, Pass::Backward { dx: true }, rows)?,
            merge: dispatch::workspace_len(device, &op, Pass::Merge, op.shape.d_out())?,
        };
        Ok(())
    })
}

/// Computes T = X·Cᵀ, Y (+)= s·(A·T)·Bᵀ.
///
/// # Safety
/// Each pointer is null or points to its struct, whose own pointers hold the elements that the struct
/// describes.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_forward(
    device: *const KronDevice,
    op: *const KronOp,
    call: *const KronForward,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call::run(device, op, call) }
}

/// Adds to θ's gradient, and computes dX (+)= dT·C where dx is not null.
///
/// # Safety
/// As kron_forward.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_backward(
    device: *const KronDevice,
    op: *const KronOp,
    call: *const KronBackward,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call::run(device, op, call) }
}

/// W (+)= s·A ⊗ (B·C), for a band of W's rows.
///
/// # Safety
/// As kron_forward.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_merge(
    device: *const KronDevice,
    op: *const KronOp,
    call: *const KronMerge,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call::run(device, op, call) }
}

/// Writes the lengths of the buffers of calls over segments of at most `rows` rows to *sizes.
///
/// # Safety
/// Each pointer is null or points to its struct, `adapters` to `count` of them, whose theta holds the elements that
/// the op describes.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_segments_sizes(
    device: *const KronDevice,
    adapters: *const KronAdapter,
    count: usize,
    rows: usize,
    sizes: *mut KronManySizes,
) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let (cpu, sizes) = unsafe { (host::host(device.as_ref())?, call::exclusive("sizes", sizes)?) };
        // SAFETY: the caller's promise.
        *sizes = unsafe { segments::with_pool(adapters, count, |pool| segments::sizes(&cpu, pool, rows)) }?;
        Ok(())
    })
}

/// Computes kron_forward for rows of many adapters in one call: the table has the number in `adapters` of each
/// row's adapter, or -1. Each row has the bits of a call over the rows of its adapter alone.
///
/// On the host alone: a device returns KRON_UNAVAILABLE. A table with a number that is no adapter's returns
/// KRON_INVALID; nothing but the workspace is written then.
///
/// # Safety
/// As kron_segments_sizes, and the pointers of *call hold the elements that it describes.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_forward_segments(
    device: *const KronDevice,
    adapters: *const KronAdapter,
    count: usize,
    call: *const KronForwardSegments,
) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let (cpu, call) = unsafe { (host::host(device.as_ref())?, *call::shared("call", call)?) };
        // SAFETY: the caller's promise.
        unsafe { segments::with_pool(adapters, count, |pool| host::run(&cpu, pool, call)) }
    })
}

/// Adds to the gradient of each adapter that has rows, and computes the rows of dX where dx is not null.
///
/// Devices and tables are as in kron_forward_segments.
///
/// # Safety
/// As kron_forward_segments; call->grads points to `count` pointers, each null or to a gradient of its adapter's
/// theta.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_backward_segments(
    device: *const KronDevice,
    adapters: *const KronAdapter,
    count: usize,
    call: *const KronBackwardSegments,
) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let (cpu, call) = unsafe { (host::host(device.as_ref())?, *call::shared("call", call)?) };
        // SAFETY: the caller's promise.
        unsafe { segments::with_pool(adapters, count, |pool| host::run(&cpu, pool, call)) }
    })
}

/// Writes the lengths of the buffers of calls over a group with at most `rows` rows to *sizes.
///
/// # Safety
/// Each pointer is null or points to its struct, `terms` to `count` of them, whose theta holds the elements that the
/// op describes and whose key is null or points to a KronKey.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_group_sizes(
    device: *const KronDevice,
    terms: *const KronTerm,
    count: usize,
    rows: usize,
    sizes: *mut KronManySizes,
) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let (device, sizes) = unsafe { (device.as_ref().copied(), call::exclusive("sizes", sizes)?) };
        // SAFETY: the caller's promise.
        unsafe { group::sizes(device, &group::Terms::new(&group::parse(terms, count)?)?, rows, sizes) }
    })
}

/// Computes kron_forward for 1 to 16 adapters on one X, such as those of q, k and v with a Y each, or the terms of a
/// sum with one Y.
///
/// On the host X is read once, and each Y of neighbouring terms of one a_out is read and written once. On a device X
/// is read once above 64 rows by up to seven terms of one a_in and one mask, where that pays; others are computed one
/// after the other.
///
/// # Safety
/// As kron_group_sizes, and the pointers of *call hold the elements that it describes; call->ys points to
/// call->outputs structs, in the memory of the host.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_forward_group(
    device: *const KronDevice,
    terms: *const KronTerm,
    count: usize,
    call: *const KronForwardGroup,
) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let (device, call) = unsafe { (device.as_ref().copied(), *call::shared("call", call)?) };
        // SAFETY: the caller's promise.
        unsafe { group::run(device, &group::Terms::new(&group::parse(terms, count)?)?, call) }
    })
}

/// Adds to the gradient of each term, and computes dX, the sum over all terms, where dx is not null.
///
/// # Safety
/// As kron_forward_group; call->dys points to call->outputs structs, and call->grads to `count` pointers to
/// gradients, both in the memory of the host.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kron_backward_group(
    device: *const KronDevice,
    terms: *const KronTerm,
    count: usize,
    call: *const KronBackwardGroup,
) -> c_int {
    status::guard(|| {
        // SAFETY: the caller's promise.
        let (device, call) = unsafe { (device.as_ref().copied(), *call::shared("call", call)?) };
        // SAFETY: the caller's promise.
        unsafe { group::run(device, &group::Terms::new(&group::parse(terms, count)?)?, call) }
    })
}

/// Returns the error of an argument.
fn refuse(what: &'static str, got: impl Into<String>, rule: impl Into<String>) -> Error {
    Error::Buffer { what, got: got.into(), rule: rule.into() }
}
