//! The device: its stream, its memory, and the clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits, sys,
};
use half::{bf16, f16};
use kron_core::{Element, Error, Result};
use kron_kernels::{Cuda, Gpu, StreamHandle};

use super::lt::Library;
use super::program::Buffer;
use crate::data::Set;

/// Bytes that are overwritten before a sample: more than any cache.
const FLUSH: usize = 512 << 20;

/// A device with what every engine shares.
pub struct Device {
    pub cuda: Cuda<Gpu>,
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    pub lt: Library,
    flush: CudaSlice<u8>,
    begin: CudaEvent,
    end: CudaEvent,
}

/// Turns an error of the driver, or of cuBLASLt, into one of ours.
pub fn failed<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> Error {
    move |e| Error::Device(format!("{what}: the device says {e:?}"))
}

impl Device {
    /// Device `ordinal`, its libraries loaded.
    pub fn open(ordinal: usize) -> Result<Self> {
        let cuda = Cuda::new(ordinal)?;
        // The bindings panic without the library, so it is asked for first.
        let names = ["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"];
        // SAFETY: cuBLASLt runs no code of ours when it is loaded.
        if !names.into_iter().any(|name| unsafe { libloading::Library::new(name) }.is_ok()) {
            return Err(Error::Unsupported(format!("none of {} can be loaded", names.join(", "))));
        }
        let context = Arc::clone(cuda.launcher().context());
        // SAFETY: everything here runs on one stream, in order.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("a stream"))?;
        let event =
            || context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed("an event"));
        let (begin, end) = (event()?, event()?);
        // SAFETY: the stream is of the device's context and lives as long as `cuda`.
        let cuda = cuda.on(unsafe { StreamHandle::from_raw(stream.cu_stream() as u64) });
        Ok(Self {
            lt: Library::new(&stream)?,
            flush: stream.alloc_zeros(FLUSH).map_err(failed("the flush buffer"))?,
            cuda,
            context,
            stream,
            begin,
            end,
        })
    }

    /// "NVIDIA H200, sm_90".
    pub fn name(&self) -> Result<String> {
        let name = self.context.name().map_err(failed("the device's name"))?;
        let (major, minor) =
            self.context.compute_capability().map_err(failed("the device's architecture"))?;
        Ok(format!("{name}, sm_{major}{minor}"))
    }

    pub fn upload<T: DeviceRepr>(&self, numbers: &[T]) -> Result<CudaSlice<T>> {
        self.stream.clone_htod(numbers).map_err(failed("an upload"))
    }

    pub fn download<T: DeviceRepr>(&self, numbers: &CudaSlice<T>) -> Result<Vec<T>> {
        let copy = self.stream.clone_dtoh(numbers).map_err(failed("a download"))?;
        self.synchronize()?;
        Ok(copy)
    }

    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>> {
        self.stream.alloc_zeros(len.max(1)).map_err(failed("device memory"))
    }

    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed("the work on the device"))
    }

    /// Seconds that the graph takes with cold caches.
    pub fn sample(&mut self, graph: &CudaGraph) -> Result<f64> {
        self.cold(|_| graph.launch().map_err(failed("a graph")))
    }

    /// Seconds of what `queue` queues, with cold caches.
    pub fn cold(&mut self, queue: impl FnOnce(&Self) -> Result<()>) -> Result<f64> {
        self.stream.memset_zeros(&mut self.flush).map_err(failed("the flush"))?;
        self.time(|| queue(self))
    }

    /// Seconds of what `queue` queues.
    pub fn time(&self, queue: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.begin.record(&self.stream).map_err(failed("an event"))?;
        queue()?;
        self.end.record(&self.stream).map_err(failed("an event"))?;
        self.end.synchronize().map_err(failed("the work on the device"))?;
        let ms = self.begin.elapsed_ms(&self.end).map_err(failed("an event"))?;
        Ok(f64::from(ms) / 1e3)
    }

    /// Captures what `queue` queues.
    pub fn capture(&self, queue: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed("a capture"))?;
        let queued = queue();
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags).map_err(failed("a capture"));
        queued?;
        graph?.ok_or_else(|| Error::Device("a capture: nothing was queued".into()))
    }
}

/// An element that cuBLASLt multiplies.
pub trait Number: Element + DeviceRepr + ValidAsZeroBits {}

impl Number for f32 {}
impl Number for f16 {}
impl Number for bf16 {}

/// A buffer on the device.
pub enum Memory<E> {
    /// In the activations' type.
    Own(CudaSlice<E>),
    Float(CudaSlice<f32>),
}

impl<E: Number> Memory<E> {
    /// Numbers.
    pub fn len(&self) -> usize {
        match self {
            Memory::Own(data) => data.len(),
            Memory::Float(data) => data.len(),
        }
    }

    /// The address of the first one.
    pub fn start(&self, device: &Device) -> u64 {
        match self {
            Memory::Own(data) => data.device_ptr(&device.stream).0,
            Memory::Float(data) => data.device_ptr(&device.stream).0,
        }
    }

    /// What is in it.
    pub fn download(&self, device: &Device) -> Result<Vec<f32>> {
        match self {
            Memory::Own(data) => Ok(device.download(data)?.into_iter().map(E::to_f32).collect()),
            Memory::Float(data) => device.download(data),
        }
    }

    /// Sets it to 0.
    pub fn clear(&mut self, device: &Device) -> Result<()> {
        match self {
            Memory::Own(data) => device.stream.memset_zeros(data),
            Memory::Float(data) => device.stream.memset_zeros(data),
        }
        .map_err(failed("a fill"))
    }
}

/// Buffers by name: those of a set, or those of an engine.
pub struct Buffers<E>(pub BTreeMap<Buffer, Memory<E>>);

impl<E: Number> Buffers<E> {
    /// A set, with room for what engines of these lengths keep from forward to backward.
    pub fn of_set(device: &Device, set: &Set<E>, lens: &BTreeMap<Buffer, usize>) -> Result<Self> {
        let one = |(&buffer, &len): (&Buffer, &usize)| {
            let memory = match buffer {
                Buffer::X => Memory::Own(device.upload(set.x.flat())?),
                Buffer::Y => Memory::Own(device.upload(set.y.flat())?),
                Buffer::Dy => Memory::Own(device.upload(set.dy.flat())?),
                Buffer::Dx => Memory::Own(device.upload(set.dx.flat())?),
                kept if kept.is_float() => Memory::Float(device.zeros(len)?),
                _ => Memory::Own(device.zeros(len)?),
            };
            Ok((buffer, memory))
        };
        Ok(Self(lens.iter().filter(|(b, _)| b.of_set()).map(one).collect::<Result<_>>()?))
    }

    pub fn get(&self, buffer: Buffer) -> Result<&Memory<E>> {
        self.0.get(&buffer).ok_or_else(|| Error::Shape(format!("there is no buffer {buffer:?}")))
    }
}
