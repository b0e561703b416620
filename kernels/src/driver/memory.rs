//! [`DeviceVec`]: device memory for programs without a framework that provides it.
//! No call of the backend allocates; a program can do so with this type.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::gpu::Gpu;
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
    /// Copies values into new memory of this device.
    ///
    /// # Errors
    /// Fails if the device has too little memory.
    pub fn upload<T: Element>(&self, values: &[T]) -> Result<DeviceVec<T>> {
        let bytes = size_of_val(values);
        let no_memory = |e| failed(&format!("an allocation of {bytes} bytes on the device"), e);
        self.context().bind_to_thread().map_err(no_memory)?;
        let pointer = match bytes {
            0 => 0,
            // SAFETY: the context is bound; a failure is an error code.
            bytes => unsafe { result::malloc_sync(bytes) }.map_err(no_memory)?,
        };
        let context = Arc::clone(self.context());
        let mut memory = DeviceVec { context, pointer, len: values.len(), elements: PhantomData };
        memory.write(values)?;
        Ok(memory)
    }

    /// Waits until all queued work of the device has run.
    ///
    /// # Errors
    /// Fails if a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        self.context().synchronize().map_err(|e| failed("the work on the device", e))
    }
}

impl<T: Element> DeviceVec<T> {
    /// Waits for all queued work, then overwrites the elements.
    ///
    /// # Errors
    /// Fails if the lengths differ or a kernel failed before.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        self.settle(values.len())?;
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: the memory has `len` elements, no queued work uses it, and
        // `settle` has bound the context and compared the lengths.
        unsafe { result::memcpy_htod_sync(self.pointer, values) }
            .map_err(|e| failed("a copy to the device", e))
    }

    /// Waits for all queued work, then copies the elements to the host.
    ///
    /// # Errors
    /// Fails if the lengths differ or a kernel failed before.
    pub fn read(&self, values: &mut [T]) -> Result<()> {
        self.settle(values.len())?;
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: as in `write`; every bit pattern is a valid element.
        unsafe { result::memcpy_dtoh_sync(values, self.pointer) }
            .map_err(|e| failed("a copy from the device", e))
    }

    /// Returns the elements, to read in a call.
    pub fn slice(&self) -> DeviceSlice<'_, T> {
        // SAFETY: the memory has `len` elements of this context; `drop`, `read`
        // and `write` wait for the work that was queued with the slice.
        unsafe { DeviceSlice::from_raw(self.pointer, self.len) }
    }

    /// Returns the elements, to write in a call.
    pub fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        // SAFETY: as in `slice`, and the borrow is exclusive; calls on one
        // stream run one after another.
        unsafe { DeviceSliceMut::from_raw(self.pointer, self.len) }
    }

    /// Checks a length and waits for the device.
    fn settle(&self, len: usize) -> Result<()> {
        if len != self.len {
            let (got, rule) = (format!("{len} elements"), format!("the device's memory has {}", self.len));
            return Err(Error::Buffer { what: "a host slice", got, rule });
        }
        self.context.synchronize().map_err(|e| failed("the work on the device", e))
    }
}

impl<T> Drop for DeviceVec<T> {
    fn drop(&mut self) {
        // A context whose work has failed cannot free memory.
        if self.pointer != 0 && self.context.synchronize().is_ok() {
            // SAFETY: `upload` allocated the memory, and no queued work uses it any more.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

fn failed(what: &str, e: DriverError) -> Error {
    Error::Device(format!("{what} failed: {e:?}"))
}
