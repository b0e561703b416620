//! [`Gpu`]: the kernels on a device, through the CUDA driver.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::device::StreamHandle;
use crate::launch::Launcher;
use crate::params::KronParams;
use crate::plan::Step;
use crate::{Error, Result};

/// The kernels, a fatbin for each of their files.
static FATBINS: &[&[u8]] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// A device's primary context with the kernels loaded: the context that
/// frameworks on the CUDA runtime use too, so their pointers and streams fit.
pub struct Gpu {
    context: Arc<CudaContext>,
    modules: Vec<sys::CUmodule>,
    functions: Mutex<HashMap<String, Function>>,
}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: a CUmodule and a CUfunction are handles of the driver, which may be
// used from any thread once the context is bound there; every use binds it.
unsafe impl Send for Gpu {}
// SAFETY: as above; the map is behind a mutex.
unsafe impl Sync for Gpu {}
// SAFETY: as above.
unsafe impl Send for Function {}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu").field("device", &self.context.ordinal()).finish_non_exhaustive()
    }
}

impl Gpu {
    /// Devices that the driver offers.
    ///
    /// # Errors
    /// No driver library, or one that does not start; never a panic.
    pub fn count() -> Result<usize> {
        // The bindings panic when the library is missing, so it is asked for first, by hand.
        const NAMES: [&str; 2] = ["libcuda.so.1", "nvcuda.dll"];
        // SAFETY: the driver's library runs no code of ours when it is loaded.
        let library =
            NAMES.iter().find_map(|name| unsafe { libloading::Library::new(*name) }.ok()).ok_or_else(
                || Error::Unavailable(format!("no CUDA driver: none of {} can be loaded", NAMES.join(", "))),
            )?;
        let absent =
            |e: libloading::Error| Error::Unavailable(format!("a CUDA driver without an entry: {e}"));
        // SAFETY: the signatures are those of the driver API's documentation.
        let (init, count) = unsafe {
            let init: libloading::Symbol<'_, unsafe extern "C" fn(c_uint) -> c_int> =
                library.get(b"cuInit\0").map_err(absent)?;
            let count: libloading::Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> =
                library.get(b"cuDeviceGetCount\0").map_err(absent)?;
            (init, count)
        };
        let mut devices = 0;
        // SAFETY: `cuInit` takes 0; `cuDeviceGetCount` writes one int.
        let code = unsafe {
            match init(0) {
                0 => count(&mut devices),
                code => code,
            }
        };
        match code {
            0 => Ok(devices as usize),
            code => Err(Error::Unavailable(format!("the CUDA driver does not start: error {code}"))),
        }
    }

    /// Loads the kernels on device `ordinal`.
    ///
    /// # Errors
    /// No driver, no such device, or a device that none of the kernels' code is for.
    pub fn new(ordinal: usize) -> Result<Self> {
        let count = Self::count()?;
        if ordinal >= count {
            return Err(Error::Unavailable(format!(
                "device {ordinal} of {count} CUDA devices does not exist"
            )));
        }
        if FATBINS.is_empty() {
            return Err(Error::Unavailable("this build holds no kernels: it was made without nvcc".into()));
        }
        let context = CudaContext::new(ordinal).map_err(|e| unavailable("the device's context", e))?;
        context.bind_to_thread().map_err(|e| unavailable("the device's context", e))?;
        let mut gpu = Self { context, modules: Vec::new(), functions: Mutex::default() };
        for fatbin in FATBINS {
            // SAFETY: the bytes are a whole fatbin, alive for the program's life.
            let module = unsafe { result::module::load_data(fatbin.as_ptr() as *const c_void) };
            gpu.modules.push(module.map_err(|e| unavailable("the kernels", e))?);
        }
        Ok(gpu)
    }

    /// The context, for its streams and memory.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// A kernel's handle, looked up once.
    fn function(&self, name: &str) -> Result<Function> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(*function);
        }
        let c_name = CString::new(name).map_err(|e| Error::Launch(e.to_string()))?;
        // SAFETY: the modules live as long as self, and their context is bound by the caller.
        let find = |&module: &_| unsafe { result::module::get_function(module, c_name.clone()) }.ok();
        let function = self.modules.iter().find_map(find);
        let function =
            function.ok_or_else(|| Error::Launch(format!("{name} is not among the loaded kernels")))?;
        let limit = crate::tiles::SHARED_LIMIT as i32;
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function exists.
        unsafe { result::function::set_function_attribute(function, attribute, limit) }.map_err(|e| {
            Error::Launch(format!("{name} may not have {limit} bytes of shared memory: {e:?}"))
        })?;
        functions.insert(name.to_owned(), Function(function));
        Ok(Function(function))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            for &module in &self.modules {
                // SAFETY: nothing uses a module after self; the driver finishes what is queued.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

impl Launcher for Gpu {
    unsafe fn launch(&self, step: &Step, params: &KronParams, stream: StreamHandle) -> Result<()> {
        self.context.bind_to_thread().map_err(|e| unavailable("the device's context", e))?;
        let function = self.function(&step.kernel)?;
        let mut arguments = [params as *const KronParams as *mut c_void];
        // SAFETY: every kernel takes one KronParams by value, which the driver
        // copies during the call; the caller vouches for its pointers, and the
        // maker of the stream handle for the stream.
        unsafe {
            result::launch_kernel(
                function.0,
                (step.grid, 1, 1),
                (step.block, 1, 1),
                step.shared,
                stream.raw() as sys::CUstream,
                &mut arguments,
            )
        }
        .map_err(|e| {
            Error::Launch(format!(
                "{} with {} blocks of {} threads and {} bytes of shared memory: {e:?}",
                step.kernel, step.grid, step.block, step.shared
            ))
        })
    }
}

fn unavailable(what: &str, e: DriverError) -> Error {
    Error::Unavailable(format!("{what} cannot be made ready: {e:?}"))
}
