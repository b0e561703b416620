//! Allocations, copies and fills.

use std::ffi::{c_uchar, c_void};

use cudarc::driver::sys::{CUdeviceptr, CUresult, CUstream};

use super::{give, key};
use crate::Done;
use crate::driver::{Driver, within};
use crate::memory::TOTAL;
use crate::work::Work;

fn allocate(driver: &mut Driver, bytes: usize) -> Done<CUdeviceptr> {
    if driver.faults.fails_allocation() {
        return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
    driver.memory.allocate(bytes)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(pointer: *mut CUdeviceptr, bytes: usize) -> CUresult {
    within(|driver, _| {
        driver.may_be_unsafe()?;
        let start = allocate(driver, bytes)?;
        // SAFETY: the caller's pointer is null or valid, in this function and all below.
        unsafe { give(pointer, start) }
    })
}

/// Waits for the context's work, as the driver does, except for what is captured, which does not run.
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(pointer: CUdeviceptr) -> CUresult {
    within(|driver, context| {
        driver.may_be_unsafe()?;
        if pointer == 0 {
            return Ok(());
        }
        driver.finish_all(context)?;
        driver.memory.free(pointer)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocAsync(pointer: *mut CUdeviceptr, bytes: usize, stream: CUstream) -> CUresult {
    within(|driver, context| {
        driver.no_node_for(key(context, stream), CUresult::CUDA_ERROR_NOT_SUPPORTED)?;
        let start = allocate(driver, bytes)?;
        // SAFETY: as above.
        unsafe { give(pointer, start) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(pointer: CUdeviceptr, stream: CUstream) -> CUresult {
    within(|driver, context| driver.queue(key(context, stream), Work::Free(pointer)).map(drop))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CUresult {
    within(|driver, _| {
        // SAFETY: as above.
        unsafe { give(free, driver.memory.free_bytes()) }?;
        // SAFETY: as above.
        unsafe { give(total, TOTAL) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: CUdeviceptr, from: *const c_void, bytes: usize) -> CUresult {
    within(|driver, context| {
        driver.may_be_unsafe()?;
        // SAFETY: the caller's memory has so many bytes.
        driver.queue((context, 0), unsafe { written(to, from, bytes) })?;
        driver.finish((context, 0))
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize) -> CUresult {
    within(|driver, context| {
        driver.may_be_unsafe()?;
        driver.may_use_legacy(context)?;
        // The copy waits for what the legacy stream waits for.
        driver.queue((context, 0), Work::Copy { to: from, from, bytes })?;
        driver.finish((context, 0))?;
        // SAFETY: the caller's memory has so many bytes.
        unsafe { download(driver, to, from, bytes) }
    })
}

/// The host's bytes are copied at once, as pageable memory's are.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: CUdeviceptr,
    from: *const c_void,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    within(|driver, context| {
        // SAFETY: the caller's memory has so many bytes.
        let work = unsafe { written(to, from, bytes) };
        driver.queue(key(context, stream), work).map(drop)
    })
}

/// The host has its bytes when the call returns, as in pageable memory.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: CUdeviceptr,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    within(|driver, context| {
        driver.may_wait_for(key(context, stream))?;
        driver.queue(key(context, stream), Work::Copy { to: from, from, bytes })?;
        driver.finish(key(context, stream))?;
        // SAFETY: the caller's memory has so many bytes.
        unsafe { download(driver, to, from, bytes) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(
    to: CUdeviceptr,
    from: CUdeviceptr,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    within(|driver, context| driver.queue(key(context, stream), Work::Copy { to, from, bytes }).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: CUdeviceptr, byte: c_uchar, bytes: usize, stream: CUstream) -> CUresult {
    within(|driver, context| driver.queue(key(context, stream), Work::Fill { to, byte, bytes }).map(drop))
}

/// # Safety
/// `from` is valid for `bytes` bytes.
unsafe fn written(to: CUdeviceptr, from: *const c_void, bytes: usize) -> Work {
    // SAFETY: the caller's promise; a slice of no bytes needs a pointer all the same.
    let data = if bytes == 0 { &[] } else { unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) } };
    Work::Write { to, data: data.into() }
}

/// # Safety
/// `to` is valid for `bytes` bytes.
unsafe fn download(driver: &Driver, to: *mut c_void, from: CUdeviceptr, bytes: usize) -> Done {
    let data = driver.memory.read(from, bytes)?;
    // SAFETY: the caller's promise; the device's memory is never the host's.
    unsafe { to.cast::<u8>().copy_from_nonoverlapping(data.as_ptr(), bytes) };
    Ok(())
}
