//! The device: its stream, its memory, cuBLAS's products, and the clock.

use std::sync::Arc;

use cudarc::cublas::{CudaBlas, Gemm, GemmConfig, sys::cublasOperation_t};
use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaGraph, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr,
    ValidAsZeroBits, sys,
};
use half::{bf16, f16};
use kron_core::cuda::{Cuda, DeviceSlice, DeviceSliceMut, Gpu, Rows, RowsMut, StreamHandle};
use kron_core::{Element, Error, Result};

use crate::data::Set;

/// Bytes that are overwritten before a sample: more than any cache.
const FLUSH: usize = 512 << 20;

/// A device with what every engine shares.
pub struct Device {
    pub cuda: Cuda<Gpu>,
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    lt: CudaBlasLT,
    blas: CudaBlas,
    flush: CudaSlice<u8>,
    begin: CudaEvent,
    end: CudaEvent,
}

/// Turns an error of the driver, or of cuBLAS, into one of ours.
pub fn failed<E: std::fmt::Debug>(what: &'static str) -> impl Fn(E) -> Error {
    move |e| Error::Device(format!("{what}: the device says {e:?}"))
}

impl Device {
    /// Device `ordinal`, its libraries loaded.
    pub fn open(ordinal: usize) -> Result<Self> {
        let cuda = Cuda::new(ordinal)?;
        // The bindings panic without these libraries, so they are asked for first.
        for name in ["libcublasLt.so", "libcublas.so"] {
            let names = [name.to_string(), format!("{name}.13"), format!("{name}.12")];
            // SAFETY: cuBLAS runs no code of ours when it is loaded.
            if !names.iter().any(|name| unsafe { libloading::Library::new(name) }.is_ok()) {
                return Err(Error::Unsupported(format!("none of {} can be loaded", names.join(", "))));
            }
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
            lt: CudaBlasLT::new(Arc::clone(&stream)).map_err(failed("cuBLASLt"))?,
            blas: CudaBlas::new(Arc::clone(&stream)).map_err(failed("cuBLAS"))?,
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
        self.stream.memset_zeros(&mut self.flush).map_err(failed("the flush"))?;
        self.time(|| graph.launch().map_err(failed("a graph")))
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

/// A matrix of a product, row-major: rows × cols, or its transpose where `transposed`.
pub struct Operand<'a, E> {
    pub data: &'a CudaSlice<E>,
    /// Elements of a stored row.
    pub width: usize,
    pub transposed: bool,
}

/// Stored as it is used.
pub fn plain<E>(data: &CudaSlice<E>, width: usize) -> Operand<'_, E> {
    Operand { data, width, transposed: false }
}

/// Stored as its transpose.
pub fn transposed<E>(data: &CudaSlice<E>, width: usize) -> Operand<'_, E> {
    Operand { data, width, transposed: true }
}

/// An element that cuBLAS multiplies.
pub trait Number: Element + DeviceRepr + ValidAsZeroBits {
    /// C (+)= alpha·A·B for `sizes` (m, n, k): C is m × n and row-major.
    fn product(
        device: &Device,
        sizes: (usize, usize, usize),
        alpha: f32,
        a: Operand<'_, Self>,
        b: Operand<'_, Self>,
        c: &mut CudaSlice<Self>,
        accumulate: bool,
    ) -> Result<()>;
}

macro_rules! sixteen_bits {
    ($($element:ty),*) => {$(
        impl Number for $element {
            fn product(
                device: &Device,
                (m, n, k): (usize, usize, usize),
                alpha: f32,
                a: Operand<'_, Self>,
                b: Operand<'_, Self>,
                c: &mut CudaSlice<Self>,
                accumulate: bool,
            ) -> Result<()> {
                check((m, n, k), &a, &b, c)?;
                // Row-major C is column-major Cᵀ = Bᵀ·Aᵀ, and cuBLAS is column-major.
                let config = MatmulConfig {
                    transa: b.transposed,
                    transb: a.transposed,
                    transc: false,
                    m: n as u64,
                    n: m as u64,
                    k: k as u64,
                    alpha,
                    lda: b.width as i64,
                    ldb: a.width as i64,
                    beta: if accumulate { 1.0 } else { 0.0 },
                    ldc: n as i64,
                    stride_a: None,
                    stride_b: None,
                    stride_c: None,
                    stride_bias: None,
                    batch_size: None,
                };
                // SAFETY: `check` held the operands against the sizes.
                unsafe { device.lt.matmul(config, b.data, a.data, c, None, None) }
                    .map_err(failed("a product by cuBLASLt"))
            }
        }
    )*};
}
sixteen_bits!(f16, bf16);

impl Number for f32 {
    /// By cuBLAS: the bindings' cuBLASLt product of float32 numbers rounds them to TF32.
    fn product(
        device: &Device,
        (m, n, k): (usize, usize, usize),
        alpha: f32,
        a: Operand<'_, Self>,
        b: Operand<'_, Self>,
        c: &mut CudaSlice<Self>,
        accumulate: bool,
    ) -> Result<()> {
        check((m, n, k), &a, &b, c)?;
        let op = |transposed| match transposed {
            true => cublasOperation_t::CUBLAS_OP_T,
            false => cublasOperation_t::CUBLAS_OP_N,
        };
        let config = GemmConfig {
            transa: op(b.transposed),
            transb: op(a.transposed),
            m: n as i32,
            n: m as i32,
            k: k as i32,
            alpha,
            lda: b.width as i32,
            ldb: a.width as i32,
            beta: if accumulate { 1.0 } else { 0.0 },
            ldc: n as i32,
        };
        // SAFETY: `check` held the operands against the sizes.
        unsafe { device.blas.gemm(config, b.data, a.data, c) }.map_err(failed("a product by cuBLAS"))
    }
}

/// That the operands hold m × k, k × n and m × n numbers.
fn check<E>(
    (m, n, k): (usize, usize, usize),
    a: &Operand<'_, E>,
    b: &Operand<'_, E>,
    c: &CudaSlice<E>,
) -> Result<()> {
    let fits = |o: &Operand<'_, E>, rows: usize, cols: usize| {
        let (rows, cols) = if o.transposed { (cols, rows) } else { (rows, cols) };
        o.width == cols && o.data.len() >= rows * cols
    };
    if fits(a, m, k) && fits(b, k, n) && c.len() >= m * n && [m, n, k].iter().all(|&s| s < 1 << 31) {
        return Ok(());
    }
    Err(Error::Shape(format!("a product of {m} × {k} by {k} × {n} does not fit its operands")))
}

/// A [`Set`] on the device, with T in both formats that engines keep it in.
pub struct DeviceSet<E> {
    pub rows: usize,
    pub x: CudaSlice<E>,
    pub y: CudaSlice<E>,
    pub dy: CudaSlice<E>,
    pub dx: CudaSlice<E>,
    pub t: CudaSlice<f32>,
    pub t_rounded: CudaSlice<E>,
}

impl<E: Number> DeviceSet<E> {
    pub fn upload(device: &Device, set: &Set<E>) -> Result<Self> {
        Ok(Self {
            rows: set.rows(),
            x: device.upload(set.x.flat())?,
            y: device.upload(set.y.flat())?,
            dy: device.upload(set.dy.flat())?,
            dx: device.upload(set.dx.flat())?,
            t: device.zeros(set.t.len())?,
            t_rounded: device.zeros(set.t.len())?,
        })
    }
}

/// A buffer as our kernels read it.
pub fn reads<'a, T>(device: &Device, data: &'a CudaSlice<T>) -> DeviceSlice<'a, T> {
    let pointer = data.device_ptr(&device.stream).0;
    // SAFETY: the memory is of the device's context, and freed in the stream's order.
    unsafe { DeviceSlice::from_raw(pointer, data.len()) }
}

/// A buffer as our kernels write it.
pub fn writes<'a, T>(device: &Device, data: &'a mut CudaSlice<T>) -> DeviceSliceMut<'a, T> {
    let len = data.len();
    let pointer = data.device_ptr_mut(&device.stream).0;
    // SAFETY: as in `reads`; everything is queued on one stream, in order.
    unsafe { DeviceSliceMut::from_raw(pointer, len) }
}

/// A contiguous matrix as our kernels read it.
pub fn rows<'a, E>(device: &Device, data: &'a CudaSlice<E>, rows: usize, width: usize) -> Rows<'a, E> {
    Rows { data: reads(device, data), rows, stride: width }
}

/// A contiguous matrix as our kernels write it.
pub fn rows_mut<'a, E>(
    device: &Device,
    data: &'a mut CudaSlice<E>,
    rows: usize,
    width: usize,
) -> RowsMut<'a, E> {
    RowsMut { data: writes(device, data), rows, stride: width }
}
