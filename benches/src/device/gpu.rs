//! The device: its stream, its memory, and the clock.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtr, DeviceRepr, ValidAsZeroBits, sys,
};
use half::{bf16, f16};
use kron_core::{Element, Error, Result};
use kron_kernels::{Cuda, Gpu, StreamHandle};

use super::buffer::Buffer;
use crate::data::Set;

/// Sizes of what is measured beside the engines.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Bytes that are read before a sample: more than any cache holds.
    pub flush: usize,
    /// Bytes copied to measure bandwidth.
    pub copy: usize,
    /// Rows and columns of the product that measures the roof.
    pub product: usize,
    /// Samples of every engine.
    pub rounds: usize,
}

/// Sizes of a measurement.
pub const WHOLE: Extent = Extent { flush: 512 << 20, copy: 1 << 30, product: 8192, rounds: 15 };
/// Sizes that show that everything runs, for `--smoke`.
pub const SMOKE: Extent = Extent { flush: 1 << 20, copy: 1 << 20, product: 128, rounds: 2 };

/// A device with its stream and its clock.
pub struct Device {
    pub cuda: Cuda<Gpu>,
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    /// Queues the flush of the caches.
    flush: Box<dyn Fn() -> Result<()>>,
    begin: CudaEvent,
    end: CudaEvent,
}

/// Converts an error of the driver or of cuBLASLt into one of ours.
pub fn failed<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> Error {
    move |e| Error::Device(format!("{what}: the device reports {e:?}"))
}

impl Device {
    /// Opens device `ordinal`.
    pub fn open(ordinal: usize) -> Result<Self> {
        let cuda = Cuda::new(ordinal)?;
        keep_cublaslt()?;
        let context = Arc::clone(cuda.launcher().context());
        // SAFETY: everything here runs on one stream, in order.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("a stream"))?;
        let event =
            || context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(failed("an event"));
        let (begin, end) = (event()?, event()?);
        // SAFETY: the stream is of the device's context and lives as long as `cuda`.
        let cuda = cuda.on(unsafe { StreamHandle::from_raw(stream.cu_stream() as u64) });
        Ok(Self { flush: Box::new(|| Ok(())), cuda, context, stream, begin, end })
    }

    /// Sets the work that empties the caches before a sample; without it samples are warm.
    pub fn flush_by(&mut self, flush: impl Fn() -> Result<()> + 'static) {
        self.flush = Box::new(flush);
    }

    /// Queues a flush of the caches.
    pub fn flush(&self) -> Result<()> {
        (self.flush)()
    }

    /// Returns the name and the architecture, such as "NVIDIA H200, sm_90".
    pub fn name(&self) -> Result<String> {
        let name = self.context.name().map_err(failed("the device's name"))?;
        let (major, minor) =
            self.context.compute_capability().map_err(failed("the device's architecture"))?;
        Ok(format!("{name}, sm_{major}{minor}"))
    }

    pub fn upload<T: DeviceRepr>(&self, elements: &[T]) -> Result<CudaSlice<T>> {
        self.stream.clone_htod(elements).map_err(failed("an upload"))
    }

    pub fn download<T: DeviceRepr>(&self, elements: &CudaSlice<T>) -> Result<Vec<T>> {
        let copy = self.stream.clone_dtoh(elements).map_err(failed("a download"))?;
        self.synchronize()?;
        Ok(copy)
    }

    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, len: usize) -> Result<CudaSlice<T>> {
        self.stream.alloc_zeros(len.max(1)).map_err(failed("device memory"))
    }

    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed("the work on the device"))
    }

    /// Returns the seconds of a graph with cold caches.
    pub fn sample(&mut self, graph: &CudaGraph) -> Result<f64> {
        self.cold(|| graph.launch().map_err(failed("a graph")))
    }

    /// Returns the seconds of the work that `queue` queues, with cold caches.
    pub fn cold(&mut self, queue: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.flush()?;
        self.time(queue)
    }

    /// Returns the seconds of the work that `queue` queues.
    pub fn time(&self, queue: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.begin.record(&self.stream).map_err(failed("an event"))?;
        queue()?;
        self.end.record(&self.stream).map_err(failed("an event"))?;
        self.end.synchronize().map_err(failed("the work on the device"))?;
        let ms = self.begin.elapsed_ms(&self.end).map_err(failed("an event"))?;
        Ok(f64::from(ms) / 1e3)
    }

    /// Captures the work that `queue` queues in a graph.
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

/// Opens cuBLASLt and keeps it open: the bindings panic where it is missing, and open it anew where it is closed.
fn keep_cublaslt() -> Result<()> {
    const NAMES: [&str; 3] = ["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"];
    static LIBRARY: OnceLock<libloading::Library> = OnceLock::new();
    if LIBRARY.get().is_some() {
        return Ok(());
    }
    // SAFETY: cuBLASLt runs no code of ours when it is loaded.
    let library = NAMES.into_iter().find_map(|name| unsafe { libloading::Library::new(name) }.ok());
    let absent = || Error::Unsupported(format!("none of {} can be loaded", NAMES.join(", ")));
    LIBRARY.get_or_init({
        let library = library.ok_or_else(absent)?;
        || library
    });
    Ok(())
}

/// An element that cuBLASLt multiplies.
pub trait Number: Element + DeviceRepr + ValidAsZeroBits {}

impl Number for f32 {}
impl Number for f16 {}
impl Number for bf16 {}

/// A buffer on the device.
pub enum DeviceBuffer<E> {
    /// Of the activations' type.
    Own(CudaSlice<E>),
    Float(CudaSlice<f32>),
}

impl<E: Number> DeviceBuffer<E> {
    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        match self {
            DeviceBuffer::Own(data) => data.len(),
            DeviceBuffer::Float(data) => data.len(),
        }
    }

    /// Returns the address of the first element.
    pub fn start(&self, device: &Device) -> u64 {
        match self {
            DeviceBuffer::Own(data) => data.device_ptr(&device.stream).0,
            DeviceBuffer::Float(data) => data.device_ptr(&device.stream).0,
        }
    }

    /// Returns the elements as float32.
    pub fn download(&self, device: &Device) -> Result<Vec<f32>> {
        match self {
            DeviceBuffer::Own(data) => Ok(device.download(data)?.into_iter().map(E::to_f32).collect()),
            DeviceBuffer::Float(data) => device.download(data),
        }
    }

    /// Sets every element to 0.
    pub fn clear(&mut self, device: &Device) -> Result<()> {
        match self {
            DeviceBuffer::Own(data) => device.stream.memset_zeros(data),
            DeviceBuffer::Float(data) => device.stream.memset_zeros(data),
        }
        .map_err(failed("a fill"))
    }
}

/// Buffers by name: those of a set, or those of an engine.
pub struct Buffers<E>(pub BTreeMap<Buffer, DeviceBuffer<E>>);

impl<E: Number> Buffers<E> {
    /// Uploads a set, with buffers of the given lengths for what engines keep from forward to backward.
    pub fn of_set(device: &Device, set: &Set<E>, lens: &BTreeMap<Buffer, usize>) -> Result<Self> {
        let one = |(&buffer, &len): (&Buffer, &usize)| {
            let memory = match buffer {
                Buffer::X => DeviceBuffer::Own(device.upload(set.x.flat())?),
                Buffer::Y => DeviceBuffer::Own(device.upload(set.y.flat())?),
                Buffer::Dy => DeviceBuffer::Own(device.upload(set.dy.flat())?),
                Buffer::Dx => DeviceBuffer::Own(device.upload(set.dx.flat())?),
                kept if kept.is_float() => DeviceBuffer::Float(device.zeros(len)?),
                _ => DeviceBuffer::Own(device.zeros(len)?),
            };
            Ok((buffer, memory))
        };
        Ok(Self(lens.iter().filter(|(b, _)| b.of_set()).map(one).collect::<Result<_>>()?))
    }

    pub fn get(&self, buffer: Buffer) -> Result<&DeviceBuffer<E>> {
        self.0.get(&buffer).ok_or_else(|| Error::Shape(format!("there is no buffer {buffer:?}")))
    }
}
