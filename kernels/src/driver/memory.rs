//! [`DeviceVec`]: device memory for programs without a framework that provides it.
//! No call of the backend allocates; a program can do so with this type.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::gpu::Gpu;
use super::thread::{Current, Relaxed};
use crate::device::{DeviceSlice, DeviceSliceMut};
use kron_core::{Element, Error, Result};

/// Elements in a device's memory, on a 256-byte boundary.
pub struct DeviceVec<T> {
    context: Arc<CudaContext>,
    /// 0 if there are no elements.
    pointer: sys::CUdeviceptr,
    len: usize,
    elements: PhantomData<T>,
}

impl<T> std::fmt::Debug for DeviceVec<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceVec").field("pointer", &self.pointer).field("len", &self.len).finish()
    }
}

impl Gpu {
    /// Copies values into new memory of this device. Waits for the legacy stream and those that synchronise with it,
    /// not for the others, so it may be called while one of these is captured.
    ///
    /// # Errors
    /// Fails if the device has too little memory.
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<DeviceVec<T>> {
        let bytes = size_of_val(values);
        let no_memory = |e| failed(&format!("an allocation of {bytes} bytes on the device"), e);
        let _current = Current::of(self.context()).map_err(no_memory)?;
        let _relaxed = Relaxed::begin().map_err(no_memory)?;
        let pointer = match bytes {
            0 => 0,
            // SAFETY: the context is current; a failure is an error code.
            bytes => unsafe { result::malloc_sync(bytes) }.map_err(no_memory)?,
        };
        let context = Arc::clone(self.context());
        let memory = DeviceVec { context, pointer, len: values.len(), elements: PhantomData };
        if bytes > 0 {
            // SAFETY: the memory has room for the values, and nothing uses it yet.
            unsafe { copy_in(pointer, values) }?;
        }
        Ok(memory)
    }

    /// Waits until all queued work of the device has run.
    ///
    /// # Errors
    /// Fails if a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        settled(self.context()).map(drop)
    }
}

impl<T: Element> DeviceVec<T> {
    /// Waits for all queued work, then overwrites the elements.
    ///
    /// # Errors
    /// Fails if the lengths differ or a kernel failed before.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        let _current = self.settle(values.len())?;
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: the memory has `len` elements, no queued work uses it, and
        // `settle` has bound the context and compared the lengths.
        unsafe { copy_in(self.pointer, values) }
    }

    /// Waits for all queued work, then copies the elements to the host.
    ///
    /// # Errors
    /// Fails if the lengths differ or a kernel failed before.
    pub fn read(&self, values: &mut [T]) -> Result<()> {
        let _current = self.settle(values.len())?;
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: as in `write`; every bit pattern is a valid element.
        unsafe { result::memcpy_dtoh_sync(values, self.pointer) }
            .map_err(|e| failed("a copy from the device", e))
    }

    /// Returns the elements, to read in a call. They have to outlive a graph in which the call was captured.
    pub fn slice(&self) -> DeviceSlice<'_, T> {
        // SAFETY: the memory has `len` elements of this context; `drop`, `read`
        // and `write` wait for the work that was queued with the slice.
        unsafe { DeviceSlice::from_raw(self.pointer, self.len) }
    }

    /// Returns the elements, to write in a call. They have to outlive a graph in which the call was captured.
    pub fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        // SAFETY: as in `slice`, and the borrow is exclusive; calls on one
        // stream run one after another.
        unsafe { DeviceSliceMut::from_raw(self.pointer, self.len) }
    }

    /// Checks a length and waits for the device, whose context is current while the result lives.
    fn settle(&self, len: usize) -> Result<Current> {
        if len != self.len {
            let (got, rule) = (format!("{len} elements"), format!("the device's memory has {}", self.len));
            return Err(Error::Buffer { what: "a host slice", got, rule });
        }
        settled(&self.context)
    }
}

impl<T> Drop for DeviceVec<T> {
    fn drop(&mut self) {
        if self.pointer == 0 {
            return;
        }
        // A context whose work has failed cannot free memory.
        if let (Ok(_current), Ok(_relaxed)) = (Current::of(&self.context), Relaxed::begin()) {
            // SAFETY: `upload` allocated the memory; the driver waits for the queued work that may use it.
            // To synchronise the context here would end a capture of somebody else's.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

/// Copies values to device memory, and waits until they are there: a copy may end before, and streams that do not
/// synchronise with the legacy stream would not wait for it.
///
/// # Safety
/// The memory has room for the values, nothing uses it, and its context is current.
unsafe fn copy_in<T>(pointer: sys::CUdeviceptr, values: &[T]) -> Result<()> {
    // SAFETY: as promised by the caller; the null stream is the legacy one.
    let done = unsafe {
        result::memcpy_htod_sync(pointer, values)
            .and_then(|()| result::stream::synchronize(std::ptr::null_mut()))
    };
    done.map_err(|e| failed("a copy to the device", e))
}

/// Waits for all queued work of a context, which is current while the result lives.
fn settled(context: &CudaContext) -> Result<Current> {
    let work = |e| failed("the work on the device", e);
    let current = Current::of(context).map_err(work)?;
    context.synchronize().map_err(work)?;
    Ok(current)
}

fn failed(what: &str, e: DriverError) -> Error {
    Error::Device(format!("{what} failed: {e:?}"))
}
