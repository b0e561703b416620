//! [`Kernels`]: the embedded fatbins, loaded into a context, with a handle of every kernel.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::thread::{Current, Relaxed};
use crate::names::{self, Name};
use kron_core::{Error, Result};

/// A fatbin on a boundary that its 64-bit fields need; `include_bytes` alone gives none.
#[repr(C, align(16))]
struct Aligned<B: ?Sized>(B);

/// The kernels: one fatbin for each file.
static FATBINS: &[&Aligned<[u8]>] = include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The loaded modules of a context and their functions.
pub(crate) struct Kernels {
    context: Arc<CudaContext>,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<Name, sys::CUfunction>,
}

// SAFETY: a CUmodule and a CUfunction are handles of the driver, which may be
// used from any thread once the context is bound there; every use binds it.
unsafe impl Send for Kernels {}
// SAFETY: as above, and nothing changes after `load`.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Returns the kernels of a context. They are loaded once and stay loaded while anyone uses them.
    ///
    /// The driver has one primary context per device for the whole process, and loaded modules
    /// belong to that context. The list of loaded kernels is therefore this crate's only global.
    pub(crate) fn of(context: &Arc<CudaContext>) -> Result<Arc<Self>> {
        static LOADED: Mutex<Vec<(usize, Weak<Kernels>)>> = Mutex::new(Vec::new());
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let key = context.cu_ctx().addr();
        loaded.retain(|(_, kernels)| kernels.strong_count() > 0);
        let here = loaded.iter().find(|(context, _)| *context == key);
        if let Some(kernels) = here.and_then(|(_, kernels)| kernels.upgrade()) {
            return Ok(kernels);
        }
        let kernels = Arc::new(Self::load(context)?);
        loaded.push((key, Arc::downgrade(&kernels)));
        Ok(kernels)
    }

    fn load(context: &Arc<CudaContext>) -> Result<Self> {
        if FATBINS.is_empty() {
            return Err(Error::Unsupported("this build holds no kernels: it was made without nvcc".into()));
        }
        let _current = Current::of(context).map_err(|e| unavailable("the device's context", e))?;
        // The first call of a program may be inside a capture.
        let _relaxed = Relaxed::begin().map_err(|e| unavailable("the kernels", e))?;
        let mut kernels =
            Self { context: Arc::clone(context), modules: Vec::new(), functions: HashMap::new() };
        for fatbin in FATBINS {
            // SAFETY: the bytes are a whole fatbin and live as long as the program.
            let module = unsafe { result::module::load_data(fatbin.0.as_ptr() as *const c_void) };
            kernels.modules.push(module.map_err(|e| unavailable("the kernels", e))?);
        }
        // Not at a kernel's first launch, which may be inside a graph capture.
        for name in names::kernels() {
            let function = kernels.find(&name)?;
            kernels.functions.insert(name, function);
        }
        Ok(kernels)
    }

    /// Returns a kernel's handle. Kernels outside plans, such as the tests' primitives, are looked up on each call.
    pub(crate) fn function(&self, name: &str) -> Result<sys::CUfunction> {
        self.functions.get(name).map_or_else(|| self.find(name), |&function| Ok(function))
    }

    fn find(&self, name: &str) -> Result<sys::CUfunction> {
        let c_name = CString::new(name).map_err(|e| Error::Device(e.to_string()))?;
        // SAFETY: the modules live as long as self, and their context is bound by the caller.
        let find = |&module: &_| unsafe { result::module::get_function(module, c_name.clone()) }.ok();
        let function = self.modules.iter().find_map(find);
        let function =
            function.ok_or_else(|| Error::Device(format!("{name} is not among the loaded kernels")))?;
        let limit = crate::tiles::SHARED_LIMIT as i32;
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function exists.
        unsafe { result::function::set_function_attribute(function, attribute, limit) }.map_err(|e| {
            Error::Device(format!("{name} may not have {limit} bytes of shared memory: {e:?}"))
        })?;
        Ok(function)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if let (Ok(_current), Ok(_relaxed)) = (Current::of(&self.context), Relaxed::begin()) {
            for &module in &self.modules {
                // SAFETY: nothing uses a module after self; the driver finishes what is queued.
                let _ = unsafe { result::module::unload(module) };
            }
        }
    }
}

pub(crate) fn unavailable(what: &str, e: DriverError) -> Error {
    Error::Unsupported(format!("{what} cannot be made ready: {e:?}"))
}
