//! Modules, functions and launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use cudarc::driver::sys::{
    CUfunction, CUfunction_attribute_enum as Attribute, CUlaunchAttributeID, CUlaunchConfig, CUmodule,
    CUresult, CUstream,
};
use kron_kernels::Name;
use kron_kernels::params::KronParams;

use super::{give, key};
use crate::Done;
use crate::driver::{Driver, Function, within};
use crate::image;
use crate::work::{Launch, Work};

/// Shared memory of a launch without an opt-in, and the most that a function may opt in to.
const SHARED: u32 = 48 << 10;
const MAX_SHARED: c_int = 227 << 10;
/// Alignment that the format's 64-bit fields need.
const ALIGNMENT: usize = 8;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) -> CUresult {
    within(|driver, _| {
        driver.may_be_unsafe()?;
        if image.is_null() || !image.addr().is_multiple_of(ALIGNMENT) {
            eprintln!("fake driver: an image at {image:?} is not on a boundary of {ALIGNMENT} bytes");
            return Err(CUresult::CUDA_ERROR_INVALID_IMAGE);
        }
        if driver.faults.old_driver {
            return Err(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        }
        // SAFETY: an image is longer than its header.
        let length = image::length(unsafe { &*image.cast() })?;
        // SAFETY: the header says how long it is.
        let kernels = image::kernels(unsafe { std::slice::from_raw_parts(image.cast(), length) })?;
        let new = driver.handle();
        driver.modules.insert(new, kernels);
        // SAFETY: the caller's pointer is null or valid, in this function and all below.
        unsafe { give(module, new as CUmodule) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: CUmodule) -> CUresult {
    within(|driver, context| {
        driver.may_be_unsafe()?;
        driver.finish_all(context)?;
        driver.modules.remove(&(module as u64)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        driver.functions.retain(|_, function| function.module != module as u64);
        Ok(())
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    function: *mut CUfunction,
    module: CUmodule,
    name: *const c_char,
) -> CUresult {
    within(|driver, _| {
        let module = module as u64;
        let kernels = driver.modules.get(&module).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        // SAFETY: the caller passes a string.
        let name =
            unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
        if !kernels.contains(name) {
            return Err(CUresult::CUDA_ERROR_NOT_FOUND);
        }
        let name = Name::from(name).map_err(|_| CUresult::CUDA_ERROR_NOT_FOUND)?;
        let known = driver.functions.iter().find(|(_, f)| f.module == module && f.name == name);
        let handle = match known.map(|(handle, _)| *handle) {
            Some(handle) => handle,
            None => {
                let handle = driver.handle();
                driver.functions.insert(handle, Function { module, name, shared_limit: SHARED });
                handle
            }
        };
        // SAFETY: as above.
        unsafe { give(function, handle as CUfunction) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: CUfunction, attribute: c_uint, value: c_int) -> CUresult {
    within(|driver, _| {
        let function =
            driver.functions.get_mut(&(function as u64)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        let shared = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as c_uint;
        if attribute != shared || !(0..=MAX_SHARED).contains(&value) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        function.shared_limit = value as u32;
        Ok(())
    })
}

/// # Safety
/// `arguments` has the address of a kernel's only argument, a KronParams.
unsafe fn launch(
    driver: &mut Driver,
    context: u64,
    function: CUfunction,
    [grid, block]: [[c_uint; 3]; 2],
    shared: c_uint,
    stream: CUstream,
    arguments: *mut *mut c_void,
) -> Done {
    let function = driver.functions.get(&(function as u64)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
    let fits = grid[0] >= 1 && grid[0] <= c_int::MAX as c_uint && (1..=1024).contains(&block[0]);
    let flat = [grid[1], grid[2], block[1], block[2]] == [1; 4];
    if !fits || !flat || shared > function.shared_limit || arguments.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    let params = unsafe { (*arguments).cast::<[u8; size_of::<KronParams>()]>().read() };
    let launch = Launch { kernel: function.name, grid: grid[0], block: block[0], shared, params };
    driver.queue(key(context, stream), Work::Launch(Box::new(launch))).map(drop)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: CUfunction,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: CUstream,
    arguments: *mut *mut c_void,
    _: *mut *mut c_void,
) -> CUresult {
    let sizes = [[grid_x, grid_y, grid_z], [block_x, block_y, block_z]];
    within(|driver, context| {
        // SAFETY: the caller passes the kernel's argument.
        unsafe { launch(driver, context, function, sizes, shared, stream, arguments) }
    })
}

/// A launch that may begin early runs in its turn; an attribute that allows anything else is not supported.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernelEx(
    config: *const CUlaunchConfig,
    function: CUfunction,
    arguments: *mut *mut c_void,
    _: *mut *mut c_void,
) -> CUresult {
    within(|driver, context| {
        // SAFETY: the caller passes a configuration with its attributes.
        let (c, attributes) = unsafe {
            let c = config.as_ref().ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
            let none = c.numAttrs == 0 || c.attrs.is_null();
            (c, if none { &[] } else { std::slice::from_raw_parts(c.attrs, c.numAttrs as usize) })
        };
        let early = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        if attributes.iter().any(|attribute| attribute.id != early) {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        let sizes = [[c.gridDimX, c.gridDimY, c.gridDimZ], [c.blockDimX, c.blockDimY, c.blockDimZ]];
        // SAFETY: the caller passes the kernel's argument.
        unsafe { launch(driver, context, function, sizes, c.sharedMemBytes, c.hStream, arguments) }
    })
}
