//! A CUDA driver for tests, `libcuda.so.1`, and a cuBLASLt beside it: both compute on the host.
//!
//! Kernels run in kron-kernels' emulation, by their names. All else is as in the driver API's
//! documentation, read strictly where it leaves a choice:
//!
//! * Work runs as late as it may: when something waits for it. A copy without a wait finds old values.
//! * New memory holds NaN. Zones on both sides of an allocation are checked when it is freed and when the
//!   context is synchronised; a kernel's operands have to lie in live memory.
//! * A call that is illegal during a capture fails and invalidates the capture.
//! * A module has the kernels of its image, and a launch the shared memory that its function opted in to.
//! * An error of queued work stays with its context.
//!
//! `KRON_FAKE_CUDA` injects failures (`faults.rs`). Captured copies from or to the host, and captured
//! allocations, are refused as not supported; the kernels' callers have none.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod api;
mod capture;
mod captured;
mod driver;
mod faults;
mod image;
#[allow(unsafe_code)]
mod memory;
#[allow(unsafe_code)]
mod product;
#[allow(unsafe_code)]
mod work;

/// Result of a call: an error is the driver's code.
type Done<T = ()> = Result<T, cudarc::driver::sys::CUresult>;
