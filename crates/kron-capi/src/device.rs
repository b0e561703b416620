//! CUDA devices, in builds that have them; and operands on any device, the emulation's included.

use std::cell::Cell;
use std::ffi::c_int;

use kron_core::{Element, Error, Result};
use kron_kernels::{Cuda, DeviceSlice, DeviceSliceMut, KeyHandle, Launcher, Rows, RowsMut};

use crate::pointers::{FromPointers, Matrix};
use crate::types::KronKey;

thread_local! {
    static KEY: Cell<*const KronKey> = const { Cell::new(std::ptr::null()) };
}

/// Takes the key in device memory of this thread's calls to come.
pub(crate) fn set_key(key: *const KronKey) -> Result<()> {
    if !key.is_aligned() {
        return Err(crate::refuse(
            "key",
            format!("the address {:#x}", key.addr()),
            "its numbers have 8 bytes",
        ));
    }
    KEY.set(key);
    Ok(())
}

/// Returns a device whose calls add the thread's key in device memory to their own.
#[cfg_attr(not(any(feature = "cuda", all(feature = "emulate", debug_assertions))), allow(dead_code))]
pub(crate) fn keyed<L: Launcher>(on: Cuda<L>) -> Cuda<L> {
    match KEY.get() {
        key if key.is_null() => on,
        // SAFETY: `set_key` has checked the alignment, and `kron_set_device_key` requires the numbers to be valid.
        key => on.with_key(unsafe { KeyHandle::from_raw(key as u64) }),
    }
}

/// A CUDA device, on the stream that the caller named.
#[cfg(feature = "cuda")]
pub(crate) fn open(device: crate::KronDevice) -> Result<Cuda<kron_kernels::Gpu>> {
    // SAFETY: `kron.h` requires a KronDevice's stream to belong to its device.
    let stream = unsafe { kron_kernels::StreamHandle::from_raw(device.stream as u64) };
    Ok(loaded(device.device)?.on(stream))
}

/// The error of a build without CUDA.
#[cfg(not(feature = "cuda"))]
pub(crate) fn without_cuda() -> Error {
    Error::Unsupported("this library was built without the feature cuda".into())
}

/// Number of devices that the driver reports.
pub(crate) fn count() -> Result<c_int> {
    #[cfg(feature = "cuda")]
    return not_forked().and_then(|()| Ok(kron_kernels::Gpu::count()? as c_int));
    #[cfg(not(feature = "cuda"))]
    Err(without_cuda())
}

/// Fails in a process that was forked after CUDA's first use, because a context does not survive a fork.
#[cfg(feature = "cuda")]
fn not_forked() -> Result<()> {
    static CUDA: crate::fork::Owner = crate::fork::Owner::new();
    if CUDA.is_this_process() {
        return Ok(());
    }
    let message = "CUDA does not survive a fork, and this process was forked after CUDA's first use";
    Err(Error::Unsupported(message.into()))
}

/// The device with its kernels loaded; they are loaded once in the life of the process.
#[cfg(feature = "cuda")]
fn loaded(number: c_int) -> Result<Cuda<kron_kernels::Gpu>> {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, PoisonError};

    static LOADED: Mutex<BTreeMap<c_int, Cuda<kron_kernels::Gpu>>> = Mutex::new(BTreeMap::new());
    let ordinal = usize::try_from(number).map_err(|_| {
        Error::Unsupported(format!("the device's number is {number}, but a number is at least 0"))
    })?;
    not_forked()?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cuda) = loaded.get(&number) {
        return Ok(cuda.clone());
    }
    let cuda = Cuda::new(ordinal)?;
    loaded.insert(number, cuda.clone());
    Ok(cuda)
}

impl<L: Launcher> FromPointers for Cuda<L> {
    unsafe fn floats<'a>(pointer: *const f32, len: usize) -> DeviceSlice<'a, f32> {
        // SAFETY: the caller's promise.
        unsafe { DeviceSlice::from_raw(pointer as u64, len) }
    }
    unsafe fn floats_mut<'a>(pointer: *mut f32, len: usize) -> DeviceSliceMut<'a, f32> {
        // SAFETY: the caller's promise.
        unsafe { DeviceSliceMut::from_raw(pointer as u64, len) }
    }
    unsafe fn rows<'a, E: Element>(matrix: Matrix<*const E>) -> Rows<'a, E> {
        // SAFETY: the caller's promise.
        let data = unsafe { DeviceSlice::from_raw(matrix.pointer as u64, matrix.extent()) };
        Rows { data, rows: matrix.rows, stride: matrix.stride }
    }
    unsafe fn rows_mut<'a, E: Element>(matrix: Matrix<*mut E>) -> RowsMut<'a, E> {
        // SAFETY: the caller's promise.
        let data = unsafe { DeviceSliceMut::from_raw(matrix.pointer as u64, matrix.extent()) };
        RowsMut { data, rows: matrix.rows, stride: matrix.stride }
    }
}
