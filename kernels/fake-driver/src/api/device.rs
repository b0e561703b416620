//! Starting, the device, contexts, and the errors' names.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute_enum as Attribute, CUresult};

use super::give;
use crate::Done;
use crate::driver::{CURRENT, PRIMARY, with, with_any, within};
use crate::faults::Faults;
use crate::image::ARCHITECTURE;
use crate::memory::TOTAL;

const NAME: &CStr = c"kron-lora's fake device";
/// CUDA 13.0, and 12.4 for an old driver.
const VERSION: c_int = 13_000;
const OLD_VERSION: c_int = 12_040;

/// Replaces the failures to come; see `faults.rs`. No driver has this function but this one.
#[unsafe(no_mangle)]
unsafe extern "C" fn kron_fake_fault(text: *const c_char) -> CUresult {
    with_any(|driver| {
        // SAFETY: the caller passes a string.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        let faults = Faults::parse(&text).inspect_err(|message| eprintln!("{message}"));
        driver.faults = faults.map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: c_uint) -> CUresult {
    with_any(|driver| {
        if !driver.started {
            let text = std::env::var("KRON_FAKE_CUDA").unwrap_or_default();
            let faults = Faults::parse(&text).inspect_err(|message| eprintln!("{message}"));
            driver.faults = faults.map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
        }
        if flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if driver.faults.no_device {
            return Err(CUresult::CUDA_ERROR_NO_DEVICE);
        }
        driver.started = true;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CUresult {
    with_any(|driver| {
        let number = if driver.faults.old_driver { OLD_VERSION } else { VERSION };
        // SAFETY: the caller's pointer is null or valid, in this function and all below.
        unsafe { give(version, number) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CUresult {
    // SAFETY: as above.
    with(|_| unsafe { give(count, 1) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) -> CUresult {
    with(|_| {
        is_device(ordinal)?;
        // SAFETY: as above.
        unsafe { give(device, ordinal) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice) -> CUresult {
    with(|_| {
        is_device(device)?;
        let bytes = NAME.to_bytes_with_nul();
        if name.is_null() || (len as usize) < bytes.len() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // SAFETY: the caller's `len` bytes are at least the name's.
        unsafe { name.copy_from_nonoverlapping(bytes.as_ptr().cast(), bytes.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) -> CUresult {
    with(|_| {
        is_device(device)?;
        // SAFETY: as above.
        unsafe { give(bytes, TOTAL) }
    })
}

/// Answers as an H200 does, about what a program of this repository asks.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_uint,
    device: CUdevice,
) -> CUresult {
    const ANSWERS: [(Attribute, c_int); 9] = [
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024),
        (Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32),
        (Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 132),
        (Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, 60 << 20),
        (Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, ARCHITECTURE as c_int / 10),
        (Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, ARCHITECTURE as c_int % 10),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 << 10),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 227 << 10),
        (Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED, 1),
    ];
    with(|_| {
        is_device(device)?;
        let answer = ANSWERS.into_iter().find(|(which, _)| *which as c_uint == attribute);
        let (_, answer) = answer.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        // SAFETY: as above.
        unsafe { give(value, answer) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) -> CUresult {
    with(|driver| {
        is_device(device)?;
        match driver.contexts.get_mut(&PRIMARY) {
            Some(primary) => primary.users += 1,
            None => driver.add_context(PRIMARY),
        }
        // SAFETY: as above.
        unsafe { give(context, PRIMARY as CUcontext) }
    })
}

/// Lets go of the primary context, which stays: with modules and memory of a program that ends.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) -> CUresult {
    with(|driver| {
        is_device(device)?;
        let primary = driver.contexts.get_mut(&PRIMARY).filter(|context| context.users > 0);
        primary.ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?.users -= 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxCreate_v4(
    context: *mut CUcontext,
    _: *mut c_void,
    _: c_uint,
    device: CUdevice,
) -> CUresult {
    with(|driver| {
        is_device(device)?;
        let new = driver.handle();
        driver.add_context(new);
        CURRENT.with_borrow_mut(|stack| stack.push(new));
        // SAFETY: as above.
        unsafe { give(context, new as CUcontext) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(context: CUcontext) -> CUresult {
    with(|driver| {
        let context = context as u64;
        if context == PRIMARY || driver.contexts.remove(&context).is_none() {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        driver.streams.retain(|key, _| key.0 != context);
        CURRENT.with_borrow_mut(|stack| stack.pop_if(|top| *top == context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut CUcontext) -> CUresult {
    with(|_| {
        let current = CURRENT.with_borrow(|stack| stack.last().copied()).unwrap_or(0);
        // SAFETY: as above.
        unsafe { give(context, current as CUcontext) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: CUcontext) -> CUresult {
    with(|driver| {
        let context = context as u64;
        if context != 0 && !driver.contexts.contains_key(&context) {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        CURRENT.with_borrow_mut(|stack| {
            stack.pop();
            stack.extend((context != 0).then_some(context));
        });
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: CUcontext) -> CUresult {
    with(|driver| {
        let context = context as u64;
        if !driver.contexts.contains_key(&context) {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        CURRENT.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxPopCurrent_v2(context: *mut CUcontext) -> CUresult {
    with(|_| {
        let top = CURRENT.with_borrow_mut(Vec::pop).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        if context.is_null() {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { give(context, top as CUcontext) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> CUresult {
    within(|driver, context| {
        driver.is_not_captured(context)?;
        driver.finish_all(context)
    })
}

/// The error's name, which stays valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(error: CUresult, text: *mut *const c_char) -> CUresult {
    static NAMES: Mutex<Vec<(CUresult, CString)>> = Mutex::new(Vec::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if !names.iter().any(|(known, _)| *known == error) {
        names.push((error, CString::new(format!("{error:?}")).unwrap_or_default()));
    }
    let name = names.iter().find(|(known, _)| *known == error).map(|(_, name)| name.as_ptr());
    // SAFETY: as above; a string keeps its address when the list grows, and none is removed.
    match unsafe { give(text, name.unwrap_or(std::ptr::null())) } {
        Ok(()) => CUresult::CUDA_SUCCESS,
        Err(error) => error,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(error: CUresult, text: *mut *const c_char) -> CUresult {
    // SAFETY: as above.
    unsafe { cuGetErrorName(error, text) }
}

fn is_device(device: CUdevice) -> Done {
    if device == 0 { Ok(()) } else { Err(CUresult::CUDA_ERROR_INVALID_DEVICE) }
}
