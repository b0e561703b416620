//! [`DeviceVec`]: device memory for programs that have no framework to bring
//! it. No call of this crate allocates; the program does, by this.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::device::{DeviceSlice, DeviceSliceMut};
use crate::driver::Gpu;
use kron_core::{Element, Error, Result};

/// Numbers in a device's memory, on a 256-byte boundary.
pub struct DeviceVec<T> {
    context: Arc<CudaContext>,
    /// 0 when there are no numbers.
    pointer: sys::CUdeviceptr,
    len: usize,
    numbers: PhantomData<T>,
}

impl<T> std::fmt::Debug for DeviceVec<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceVec").field("pointer", &self.pointer).field("len", &self.len).finish()
    }
}

impl Gpu {
    /// Copies numbers into new memory of this device.
    ///
    /// # Errors
    /// Memory that the device does not have.
    pub fn upload<T: Element>(&self, numbers: &[T]) -> Result<DeviceVec<T>> {
        let bytes = size_of_val(numbers);
        let no_memory = |e| failed(&format!("{bytes} bytes of device memory"), e);
        self.context().bind_to_thread().map_err(no_memory)?;
        let pointer = match bytes {
            0 => 0,
            // SAFETY: the context is bound; a failure is an error code.
            bytes => unsafe { result::malloc_sync(bytes) }.map_err(no_memory)?,
        };
        let context = Arc::clone(self.context());
        let mut memory = DeviceVec { context, pointer, len: numbers.len(), numbers: PhantomData };
        memory.write(numbers)?;
        Ok(memory)
    }

    /// Waits until everything that was queued on the device has run.
    ///
    /// # Errors
    /// A kernel that failed.
    pub fn synchronize(&self) -> Result<()> {
        self.context().synchronize().map_err(|e| failed("the work on the device", e))
    }
}

impl<T: Element> DeviceVec<T> {
    /// Overwrites the numbers, after everything that was queued on the device has run.
    ///
    /// # Errors
    /// A slice of another length, or a kernel that failed before.
    pub fn write(&mut self, numbers: &[T]) -> Result<()> {
        self.settle(numbers.len())?;
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: the memory holds `len` numbers, nothing queued uses it, and
        // `settle` has bound the context and compared the lengths.
        unsafe { result::memcpy_htod_sync(self.pointer, numbers) }
            .map_err(|e| failed("a copy to the device", e))
    }

    /// Copies the numbers to the host, after everything that was queued on the device has run.
    ///
    /// # Errors
    /// A slice of another length, or a kernel that failed before.
    pub fn read(&self, numbers: &mut [T]) -> Result<()> {
        self.settle(numbers.len())?;
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: as in `write`; any bits are a number.
        unsafe { result::memcpy_dtoh_sync(numbers, self.pointer) }
            .map_err(|e| failed("a copy from the device", e))
    }

    /// The numbers, to read in a call.
    pub fn slice(&self) -> DeviceSlice<'_, T> {
        // SAFETY: the memory holds `len` numbers of this context; `drop`, `read`
        // and `write` wait for whatever was queued with the slice.
        unsafe { DeviceSlice::from_raw(self.pointer, self.len) }
    }

    /// The numbers, to write in a call.
    pub fn slice_mut(&mut self) -> DeviceSliceMut<'_, T> {
        // SAFETY: as in `slice`, and the borrow is exclusive; calls on one
        // stream run one after another.
        unsafe { DeviceSliceMut::from_raw(self.pointer, self.len) }
    }

    /// Checks a length and waits for the device.
    fn settle(&self, len: usize) -> Result<()> {
        if len != self.len {
            let (got, rule) = (format!("{len} numbers"), format!("the device's has {}", self.len));
            return Err(Error::Buffer { what: "numbers", got, rule });
        }
        self.context.synchronize().map_err(|e| failed("the work on the device", e))
    }
}

impl<T> Drop for DeviceVec<T> {
    fn drop(&mut self) {
        // A context whose work has failed gives nothing back that is worth having.
        if self.pointer != 0 && self.context.synchronize().is_ok() {
            // SAFETY: `upload` got the memory, and nothing queued uses it any more.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

fn failed(what: &str, e: DriverError) -> Error {
    Error::Device(format!("{what}: the driver says {e:?}"))
}
