//! Streams with their captures, and events.

use std::ffi::c_uint;

use cudarc::driver::sys::{
    CUevent, CUevent_flags_enum, CUgraph, CUresult, CUstream, CUstream_flags_enum, CUstreamCaptureStatus,
};

use super::{give, key};
use crate::captured::{self, Mode};
use crate::driver::{Event, Stream, with, within};
use crate::work::Work;

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut CUstream, flags: c_uint) -> CUresult {
    within(|driver, context| {
        let (new, apart) = (driver.handle(), CUstream_flags_enum::CU_STREAM_NON_BLOCKING as c_uint);
        driver.streams.insert((context, new), Stream::new(flags & apart == 0));
        // SAFETY: the caller's pointer is null or valid, in this function and all below.
        unsafe { give(stream, new as CUstream) }
    })
}

/// Finishes the stream's work, which the driver does later.
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: CUstream) -> CUresult {
    within(|driver, context| {
        let key = key(context, stream);
        driver.may_wait_for(key)?;
        let finished = driver.finish(key);
        driver.streams.remove(&key);
        finished
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: CUstream) -> CUresult {
    within(|driver, context| {
        driver.may_wait_for(key(context, stream))?;
        driver.finish(key(context, stream))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: CUstream, event: CUevent, _: c_uint) -> CUresult {
    within(|driver, context| {
        let key = key(context, stream);
        let event = driver.events.get(&(event as u64)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        match (event.captured, event.recorded) {
            (Some(moment), _) => driver.join_capture(key, moment),
            // A captured stream may not wait for work outside its capture.
            (None, Some(_)) if driver.capturing(key)?.is_some() => {
                driver.may_wait_for(key).map_err(|_| CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION)
            }
            (None, Some((other, number))) => driver.queue(key, Work::Wait(other, number)).map(drop),
            (None, None) => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamIsCapturing(stream: CUstream, status: *mut CUstreamCaptureStatus) -> CUresult {
    within(|driver, context| {
        let status_now = match driver.capturing(key(context, stream))? {
            None => CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE,
            Some(true) => CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE,
            Some(false) => CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED,
        };
        // SAFETY: as above.
        unsafe { give(status, status_now) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: CUstream, mode: c_uint) -> CUresult {
    within(|driver, context| driver.begin_capture(key(context, stream), Mode::of(mode)?))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph) -> CUresult {
    within(|driver, context| {
        // SAFETY: as above.
        unsafe { give(graph, std::ptr::null_mut()) }?;
        let new = driver.end_capture(key(context, stream))?;
        // SAFETY: as above.
        unsafe { give(graph, new as CUgraph) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) -> CUresult {
    with(|_| {
        // SAFETY: as above.
        let wanted = unsafe { mode.as_ref() }.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let before = captured::exchange(Mode::of(*wanted)?);
        // SAFETY: as above.
        unsafe { give(mode, before as c_uint) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut CUevent, flags: c_uint) -> CUresult {
    within(|driver, context| {
        let untimed = CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as c_uint;
        let new = driver.handle();
        driver.events.insert(new, Event { context, timed: flags & untimed == 0, ..Event::default() });
        // SAFETY: as above.
        unsafe { give(event, new as CUevent) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: CUevent) -> CUresult {
    with(|driver| driver.events.remove(&(event as u64)).map(drop).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: CUevent, stream: CUstream) -> CUresult {
    within(|driver, context| {
        let found = driver.events.get(&(event as u64)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        if found.context != context {
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        driver.queue(key(context, stream), Work::Record(event as u64)).map(drop)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: CUevent) -> CUresult {
    within(|driver, _| {
        let event = driver.events.get(&(event as u64)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        match (event.captured, event.recorded) {
            (Some(_), _) => Err(CUresult::CUDA_ERROR_CAPTURED_EVENT),
            (None, None) => Ok(()),
            (None, Some((key, number))) => driver.finish_up_to(key, number),
        }
    })
}

/// Milliseconds of the host between two records, the work between them included.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent) -> CUresult {
    within(|driver, _| {
        let event = |event: CUevent| {
            let event = driver.events.get(&(event as u64)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
            match (event.timed, event.recorded, event.at) {
                (false, ..) | (_, None, _) => Err(CUresult::CUDA_ERROR_INVALID_HANDLE),
                (true, Some(_), None) => Err(CUresult::CUDA_ERROR_NOT_READY),
                (true, Some(_), Some(at)) => Ok(at),
            }
        };
        let elapsed = event(end)?.duration_since(event(start)?);
        // SAFETY: as above.
        unsafe { give(milliseconds, elapsed.as_secs_f32() * 1e3) }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: CUevent, end: CUevent) -> CUresult {
    // SAFETY: as above.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}
