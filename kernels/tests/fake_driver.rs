//! The driver's side on the fake driver, where calls can be made to fail. On any other driver, and without
//! one, each test reports itself as skipped.
#![cfg(feature = "cuda")]

mod common;
#[path = "common/layer.rs"]
mod layer;
#[path = "../../tests/src/notice.rs"]
mod notice;

use std::ffi::{CString, c_char, c_int};
use std::process::Command;

use common::primitives::{PRIMITIVES, input, plain_step, step};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use half::bf16;
use kron_core::Error;
use kron_kernels::params::KronParams;
use kron_kernels::{Cuda, Gpu, Launcher, StreamHandle};
use layer::{Layer, aligned, device};
use notice::notice;

/// A primitive of few words: two in and one out for each lane.
const PRODUCT: usize = 11;

/// Tells the fake driver which calls are to fail; returns false if the driver is another one.
fn inject(faults: &str) -> bool {
    type Inject = unsafe extern "C" fn(*const c_char) -> c_int;
    let text = CString::new(faults).expect("no zeros");
    // SAFETY: loading the driver runs only its own initialisers, and the signature is the fake's.
    let done = unsafe {
        let library = libloading::Library::new("libcuda.so.1");
        library.ok().and_then(|l| l.get::<Inject>(b"kron_fake_fault\0").ok().map(|f| f(text.as_ptr())))
    };
    if done.is_none() {
        notice(format_args!("skipped: there is no fake driver"));
    }
    done.is_some_and(|code| code == 0)
}

/// Returns true if the driver is the fake one; the faults of other tests stay as they are.
fn is_fake() -> bool {
    // SAFETY: loading the driver runs only its own initialisers; the symbol is looked up and not called.
    let found = unsafe {
        let library = libloading::Library::new("libcuda.so.1");
        library.is_ok_and(|library| library.get::<*const ()>(b"kron_fake_fault\0").is_ok())
    };
    if !found {
        notice(format_args!("skipped: there is no fake driver"));
    }
    found
}

/// Runs a test in a process of its own, whose driver fails as `faults` say: an error may stay with its context.
fn alone(test: &str, faults: &str, body: impl FnOnce()) {
    const FAULTS: &str = "KRON_FAKE_CUDA";
    if std::env::var(FAULTS).is_ok_and(|set| set == faults) {
        return body();
    }
    if !is_fake() {
        return;
    }
    let program = std::env::current_exe().expect("this program");
    let run = Command::new(program).args(["--exact", test]).env(FAULTS, faults).output().expect("it starts");
    let out = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success() && out.contains("1 passed"),
        "{out}{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

fn code<T>(result: Result<T, DriverError>) -> sys::CUresult {
    result.err().map_or(sys::CUresult::CUDA_SUCCESS, |e| e.0)
}

fn current() -> Option<sys::CUcontext> {
    result::ctx::get_current().expect("a started driver")
}

#[test]
fn no_device_is_an_error() {
    alone("no_device_is_an_error", "no-device", || {
        let message = Gpu::new(0).expect_err("no device").to_string();
        assert!(message.contains("does not start: error 100"), "{message}");
    });
}

#[test]
fn an_old_driver_is_refused_with_its_version() {
    alone("an_old_driver_is_refused_with_its_version", "old-driver", || {
        let message = Gpu::new(0).expect_err("it is too old").to_string();
        assert!(message.contains("for CUDA 12.4") && message.contains("13.0 or later"), "{message}");
    });
}

#[test]
fn a_full_device_is_an_error_and_nothing_else() {
    let Some((_alone, gpu)) = device() else { return };
    if !inject("out-of-memory=2") {
        return;
    }
    let first = gpu.upload(&[1f32; 64]).expect("the first has room");
    let error = gpu.upload(&[1f32; 64]).expect_err("the second has none");
    assert!(
        matches!(&error, Error::Device(text) if text.contains("256 bytes") && text.contains("OUT_OF_MEMORY"))
    );
    assert!(inject(""));
    let mut back = [0f32; 64];
    first.read(&mut back).expect("the first is whole");
    assert_eq!(back, [1.0; 64]);
}

/// A kernel's failure is reported by whoever waits, then by every call, and nothing panics.
#[test]
fn a_failed_launch_stays_an_error() {
    alone("a_failed_launch_stays_an_error", "launch-failure=3", || {
        let (_alone, gpu) = device().expect("the fake device");
        let mut layer = Layer::<bf16>::new(&gpu, aligned(), 130);
        layer.queue(&Cuda::with(&gpu), None).expect("launches are queued");
        for _ in 0..2 {
            let message = gpu.synchronize().expect_err("the third launch failed").to_string();
            assert!(message.contains("LAUNCH_FAILED"), "{message}");
        }
        assert!(gpu.upload(&[0f32]).is_err() && layer.queue(&Cuda::with(&gpu), None).is_err());
        drop(layer);
    });
}

/// Buffers of a primitive, and its arguments.
fn primitive(gpu: &Gpu, words_out: usize) -> (KronParams, [kron_kernels::DeviceVec<f32>; 2]) {
    let (_, words, _, kind) = PRIMITIVES[PRODUCT];
    let floats: Vec<f32> = input(1, words, kind).into_iter().map(f32::from_bits).collect();
    let x = gpu.upload(&floats).expect("a little memory");
    let mut y = gpu.upload(&vec![0f32; words_out]).expect("a little memory");
    let (x_at, y_at) = (x.slice().pointer() as _, y.slice_mut().pointer() as _);
    (KronParams { x: x_at, y: y_at, ..KronParams::default() }, [x, y])
}

#[test]
fn a_write_beside_a_buffer_is_noticed() {
    alone("a_write_beside_a_buffer_is_noticed", "", || {
        let (_alone, gpu) = device().expect("the fake device");
        let (params, _memory) = primitive(&gpu, 31);
        // SAFETY: the emulation writes one word into the zone behind the buffer.
        unsafe { gpu.launch(&step(PRODUCT), &params, StreamHandle::DEFAULT) }.expect("it is queued");
        let message = gpu.synchronize().expect_err("one word too many").to_string();
        assert!(message.contains("ILLEGAL_ADDRESS"), "{message}");
    });
}

#[test]
fn memory_that_is_not_the_device_s_is_noticed() {
    alone("memory_that_is_not_the_device_s_is_noticed", "", || {
        let (_alone, gpu) = device().expect("the fake device");
        let (params, memory) = primitive(&gpu, 32);
        drop(memory);
        // SAFETY: the driver refuses the launch when its turn comes.
        unsafe { gpu.launch(&step(PRODUCT), &params, StreamHandle::DEFAULT) }.expect("it is queued");
        let message = gpu.synchronize().expect_err("the memory is freed").to_string();
        assert!(message.contains("ILLEGAL_ADDRESS"), "{message}");
    });
}

#[test]
fn launches_have_the_shared_memory_that_was_opted_in() {
    let Some((_alone, gpu)) = device().filter(|_| inject("")) else { return };
    let (params, _memory) = primitive(&gpu, 32);
    let shared = kron_kernels::tiles::SHARED_LIMIT as u32;
    let with = |shared| {
        let kernel = PRIMITIVES[PRODUCT].0.try_into().expect("a short name");
        // SAFETY: the primitive stays inside its buffers.
        unsafe { gpu.launch(&plain_step(kernel, 1, 32, shared), &params, StreamHandle::DEFAULT) }
    };
    with(shared).expect("as much as was asked for");
    let message = with(shared + 16).expect_err("more than was asked for").to_string();
    assert!(message.contains("INVALID_VALUE"), "{message}");
    // The emulation has this kernel, the fatbins have not.
    let absent = plain_step("fault_divergent_barrier".try_into().expect("a short name"), 1, 32, 0);
    // SAFETY: nothing is launched.
    let error = unsafe { gpu.launch(&absent, &params, StreamHandle::DEFAULT) }.expect_err("no such kernel");
    assert!(error.to_string().contains("not among the loaded kernels"), "{error}");
    gpu.synchronize().expect("the launch that fitted ran");
}

/// Work runs when something waits for it, so a copy that does not wait finds the old values.
#[test]
fn a_copy_that_does_not_wait_is_early() {
    let Some((_alone, gpu)) = device().filter(|_| inject("")) else { return };
    let (params, [_x, y]) = primitive(&gpu, 32);
    let stream = gpu.context().new_stream().expect("a stream");
    // SAFETY: the stream is of the device's context, and the primitive stays inside its buffers.
    unsafe {
        let handle = StreamHandle::from_raw(stream.cu_stream() as u64);
        gpu.launch(&step(PRODUCT), &params, handle).expect("it is queued");
    }
    let mut early = [1f32; 32];
    // SAFETY: the buffer has 32 words.
    unsafe { result::memcpy_dtoh_sync(&mut early, y.slice().pointer()) }.expect("the legacy stream is idle");
    assert_eq!(early, [0.0; 32]);
    let mut late = [0f32; 32];
    y.read(&mut late).expect("it ran");
    assert!(late.iter().any(|v| v.to_bits() != 0));
}

/// A call leaves its thread with the context that was current, or with none.
#[test]
fn a_thread_keeps_its_context() {
    let Some((_alone, _)) = device().filter(|_| inject("")) else { return };
    let mut other: sys::CUcontext = std::ptr::null_mut();
    // SAFETY: the driver has started and has device 0.
    unsafe { sys::cuCtxCreate_v4(&mut other, std::ptr::null_mut(), 0, 0) }.result().expect("a context");
    for context in [std::ptr::null_mut(), other] {
        // SAFETY: the context exists, or there is to be none.
        unsafe { result::ctx::set_current(context) }.expect("it becomes current");
        let before = current();
        let again = Gpu::new(0).expect("the device");
        assert_eq!(current(), before, "Gpu::new");
        let mut layer = Layer::<bf16>::new(&again, aligned(), 20);
        assert_eq!(current(), before, "upload");
        layer.queue(&Cuda::with(&again), None).expect("a call");
        assert_eq!(current(), before, "a call");
        again.synchronize().expect("it ran");
        assert_eq!(current(), before, "synchronize");
        layer.bits();
        assert_eq!(current(), before, "read");
        drop(layer);
        assert_eq!(current(), before, "drop");
    }
    // SAFETY: nothing uses the context any more.
    unsafe { sys::cuCtxDestroy_v2(other) }.result().expect("it goes");
}

const GLOBAL: sys::CUstreamCaptureMode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
const FLAGS: sys::CUgraphInstantiate_flags =
    sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;

/// A buffer that goes out of scope during a capture, in its thread or in another, is freed; the capture goes on.
#[test]
fn a_dropped_buffer_leaves_captures_alone() {
    let Some((_alone, gpu)) = device().filter(|_| inject("")) else { return };
    let mut layer = Layer::<bf16>::new(&gpu, aligned(), 20);
    let stream = gpu.context().new_stream().expect("a stream");
    // SAFETY: the stream is of the device's context and outlives what is queued on it.
    let on = Cuda::with(&gpu).on(unsafe { StreamHandle::from_raw(stream.cu_stream() as u64) });
    let free = || gpu.context().mem_get_info().expect("the driver answers").0;
    let before = free();
    let (here, there) = (gpu.upload(&[1f32; 4096]), gpu.upload(&[1f32; 4096]));
    assert!(free() < before);
    stream.begin_capture(GLOBAL).expect("a capture begins");
    layer.queue(&on, None).expect("a call");
    drop(here);
    std::thread::scope(|scope| drop(scope.spawn(|| drop(there)).join()));
    assert_eq!(free(), before, "both were freed");
    let graph = stream.end_capture(FLAGS).expect("the capture is valid").expect("launches were captured");
    graph.launch().expect("a replay");
    stream.synchronize().expect("it ran");
}

/// A call that has to wait for the device fails during a capture, says so, and ends the capture.
#[test]
fn waiting_ends_a_capture() {
    let Some((_alone, gpu)) = device().filter(|_| inject("")) else { return };
    let memory = gpu.upload(&[1f32; 8]).expect("a little memory");
    let stream = gpu.context().new_stream().expect("a stream");
    let waits: [&dyn Fn() -> kron_core::Result<()>; 2] =
        [&|| gpu.synchronize(), &|| memory.read(&mut [0f32; 8])];
    for wait in waits {
        stream.begin_capture(GLOBAL).expect("a capture begins");
        let message = wait().expect_err("a captured stream cannot be waited for").to_string();
        assert!(message.contains("STREAM_CAPTURE_UNSUPPORTED"), "{message}");
        assert_eq!(code(stream.end_capture(FLAGS)), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    stream.synchronize().expect("the stream is free again");
}

/// Memory is not allocated in the order of a captured stream here, and the legacy stream cannot join a capture.
#[test]
fn what_cannot_be_captured_ends_a_capture() {
    let Some((_alone, gpu)) = device().filter(|_| inject("")) else { return };
    let stream = gpu.context().new_stream().expect("a stream");
    let event = gpu.context().new_event(None).expect("an event");
    gpu.context().bind_to_thread().expect("a context");
    let allocates = || {
        // SAFETY: the stream is of this thread's context.
        code(unsafe { result::malloc_async(stream.cu_stream(), 64) })
    };
    let legacy_waits = || {
        // SAFETY: the event is of this thread's context, whose legacy stream is null.
        code(unsafe { sys::cuStreamWaitEvent(std::ptr::null_mut(), event.cu_event(), 0) }.result())
    };
    let calls: [(&dyn Fn() -> sys::CUresult, _); 2] = [
        (&allocates, sys::CUresult::CUDA_ERROR_NOT_SUPPORTED),
        (&legacy_waits, sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
    ];
    for (call, error) in calls {
        stream.begin_capture(GLOBAL).expect("a capture begins");
        event.record(&stream).expect("a node");
        assert_eq!(call(), error);
        assert_eq!(code(stream.end_capture(FLAGS)), sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
    gpu.synchronize().expect("the streams are free again");
}

/// The first call of a process may be inside a capture: loading the kernels does not end it.
#[test]
fn kernels_are_loaded_inside_a_capture() {
    alone("kernels_are_loaded_inside_a_capture", "", || {
        assert_eq!(Gpu::count().expect("the fake driver"), 1);
        let context = CudaContext::new(0).expect("a context");
        let stream = context.new_stream().expect("a stream");
        // SAFETY: of this and the next calls: the memory has 64 and 32 words, and the context is current.
        let [x, y] = [256, 128].map(|bytes| unsafe { result::malloc_sync(bytes) }.expect("a little memory"));
        let words: Vec<u32> = (1..=64).map(|i| i << 24).collect();
        // SAFETY: as above.
        unsafe { result::memcpy_htod_sync(x, &words) }.expect("a copy");
        stream.begin_capture(GLOBAL).expect("a capture begins");
        let gpu = Gpu::new(0).expect("the kernels are loaded");
        let params = KronParams { x: x as _, y: y as _, ..KronParams::default() };
        // SAFETY: the primitive stays inside its buffers.
        unsafe {
            let handle = StreamHandle::from_raw(stream.cu_stream() as u64);
            gpu.launch(&step(PRODUCT), &params, handle).expect("it is queued");
        }
        let graph = stream.end_capture(FLAGS).expect("the capture is valid").expect("a launch was captured");
        graph.launch().expect("a replay");
        stream.synchronize().expect("it ran");
        let mut out = [0u32; 32];
        // SAFETY: as above.
        unsafe { result::memcpy_dtoh_sync(&mut out, y) }.expect("a copy");
        let product = |i: usize| ((u64::from(words[2 * i]) * u64::from(words[2 * i + 1])) >> 32) as u32;
        assert_eq!(out.to_vec(), (0..32).map(product).collect::<Vec<_>>());
    });
}

/// The driver's library stays open once it was opened: a second opening would start it anew.
#[cfg(unix)]
#[test]
fn the_driver_stays_open() {
    use libloading::os::unix::{Library, RTLD_NOW};
    /// Finds a library only if it is open.
    const RTLD_NOLOAD: c_int = 4;
    // In a process of its own, where no other test keeps the library open.
    alone("the_driver_stays_open", "out-of-memory=1000000", || {
        assert!(Gpu::count().expect("a driver") > 0);
        // SAFETY: nothing is loaded.
        let open = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW | RTLD_NOLOAD) };
        assert!(open.is_ok(), "{open:?}");
    });
}
