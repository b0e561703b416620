//! The driver's library, opened once and kept: a library that is closed and opened again starts anew.

use std::ffi::{c_int, c_uint};
use std::sync::OnceLock;

use libloading::{Library, Symbol};

use kron_core::{Error, Result};

const NAMES: [&str; 2] = ["libcuda.so.1", "nvcuda.dll"];
/// Oldest driver that loads the kernels: that of CUDA 13.0, as 1000·major + 10·minor.
const NEEDED: c_int = 13_000;

/// Returns the started driver's library. The bindings panic where it is missing, so it is opened here first.
fn library() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    if let Some(library) = LIBRARY.get() {
        return Ok(library);
    }
    // SAFETY: loading the driver's library runs only its own initialisers.
    let library = NAMES.iter().find_map(|name| unsafe { Library::new(*name) }.ok()).ok_or_else(|| {
        Error::Unsupported(format!("no CUDA driver: none of {} can be loaded", NAMES.join(", ")))
    })?;
    // SAFETY: the signature is that of the driver API's documentation.
    let init: Symbol<'_, unsafe extern "C" fn(c_uint) -> c_int> =
        unsafe { library.get(b"cuInit\0") }.map_err(absent)?;
    // SAFETY: `cuInit` takes 0.
    started(unsafe { init(0) })?;
    Ok(LIBRARY.get_or_init(|| library))
}

/// Returns the number of devices.
pub(super) fn devices() -> Result<usize> {
    Ok(ask(b"cuDeviceGetCount\0")? as usize)
}

/// Fails if the driver is too old for the kernels.
pub(super) fn check_version() -> Result<()> {
    match ask(b"cuDriverGetVersion\0")? {
        version if version >= NEEDED => Ok(()),
        version => Err(Error::Unsupported(format!(
            "the CUDA driver is for CUDA {}.{}, but the kernels need a driver for {}.{} or later",
            version / 1000,
            version % 1000 / 10,
            NEEDED / 1000,
            NEEDED % 1000 / 10
        ))),
    }
}

/// Calls a function that writes one int.
fn ask(name: &[u8]) -> Result<c_int> {
    let library = library()?;
    // SAFETY: the signature is that of the driver API's documentation.
    let ask: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> =
        unsafe { library.get(name) }.map_err(absent)?;
    let mut answer = 0;
    // SAFETY: the function writes one int.
    started(unsafe { ask(&mut answer) })?;
    Ok(answer)
}

fn absent(e: libloading::Error) -> Error {
    Error::Unsupported(format!("a CUDA driver without an entry: {e}"))
}

fn started(code: c_int) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Error::Unsupported(format!("the CUDA driver does not start: error {code}"))),
    }
}
