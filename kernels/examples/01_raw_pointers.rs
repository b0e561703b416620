//! Forward and backward on the memory and the stream of another framework, which gives only raw handles.
//!
//! ```sh
//! cargo run -p kron-kernels --features emulate --example 01_raw_pointers
//! cargo run -p kron-kernels --features cuda --example 01_raw_pointers
//! ```
//!
//! The emulated kernels run on host memory. With the feature `cuda` the same code runs on device 0 as
//! well, if the machine has one. Both results are compared with kron-core's CPU backend.

use half::bf16;
use kron_core::{
    Accum, Backend, Backward, Cpu, Forward, KronOp, KronShape, LayerDims, Pass, Result, Scale, Split, Theta,
};
use kron_kernels::{Cuda, DeviceSlice, DeviceSliceMut, Emulated, Launcher, Rows, RowsMut, StreamHandle};
use ndarray::{ArrayView2, ArrayViewMut2};

/// Addresses of tensors, as `tensor.data_ptr()` returns them in PyTorch.
struct Pointers {
    /// Float32: θ = \[A | B | C\], T, θ's gradient, and scratch.
    theta: u64,
    t: u64,
    grad: u64,
    workspace: u64,
    /// bf16: X and dX are rows × d_in, Y and dY are rows × d_out.
    x: u64,
    y: u64,
    dy: u64,
    dx: u64,
}

/// Adds the adapter's output to Y, then θ's gradient to `grad`, and overwrites dX.
///
/// # Safety
/// Each pointer is valid on the launcher's device for its tensor's elements, `workspace` elements of
/// scratch included, and no other work uses the memory until the stream's work has run. `stream` is a live
/// stream of the device, or 0.
unsafe fn train_step<L: Launcher>(
    cuda: &Cuda<L>,
    stream: u64,
    op: &KronOp,
    rows: usize,
    at: &Pointers,
    workspace: usize,
) -> Result<()> {
    let (shape, t_len) = (op.shape, op.t_len(rows));
    let (d_in, d_out) = (shape.d_in(), shape.d_out());
    // SAFETY: the caller's promise about the stream.
    let cuda = cuda.on(unsafe { StreamHandle::from_raw(stream) });
    // SAFETY: the caller's promise about the pointers; nothing writes θ, X and dY during the calls.
    let (theta, x, dy) = unsafe {
        (
            DeviceSlice::from_raw(at.theta, shape.params()),
            Rows { data: DeviceSlice::<bf16>::from_raw(at.x, rows * d_in), rows, stride: d_in },
            Rows { data: DeviceSlice::<bf16>::from_raw(at.dy, rows * d_out), rows, stride: d_out },
        )
    };
    // SAFETY: the caller's promise about the pointers; each output occurs once in a call.
    let (y, t, scratch) = unsafe {
        (
            RowsMut { data: DeviceSliceMut::<bf16>::from_raw(at.y, rows * d_out), rows, stride: d_out },
            DeviceSliceMut::from_raw(at.t, t_len),
            DeviceSliceMut::from_raw(at.workspace, workspace),
        )
    };
    cuda.forward(op, Forward { theta, x, y, accum: Accum::Add, t, workspace: scratch, dropout: None })?;
    // SAFETY: as above; the calls run one after another on the stream, so T is written before it is read.
    let (t, dx, grad, scratch) = unsafe {
        (
            DeviceSlice::from_raw(at.t, t_len),
            RowsMut { data: DeviceSliceMut::<bf16>::from_raw(at.dx, rows * d_in), rows, stride: d_in },
            DeviceSliceMut::from_raw(at.grad, shape.params()),
            DeviceSliceMut::from_raw(at.workspace, workspace),
        )
    };
    let dx = Some((dx, Accum::Replace));
    cuda.backward(op, Backward { theta, x, t, dy, dx, grad, workspace: scratch, dropout: None })
}

/// Scratch, in float32 elements, for both calls.
fn workspace_len(on: &impl Backend, op: &KronOp, rows: usize) -> usize {
    let backward = Pass::Backward { dx: true };
    on.workspace_len(op, Pass::Forward, rows).max(on.workspace_len(op, backward, rows))
}

/// Tensors on the host.
#[derive(Clone)]
struct Tensors {
    theta: Vec<f32>,
    t: Vec<f32>,
    grad: Vec<f32>,
    x: Vec<bf16>,
    y: Vec<bf16>,
    dy: Vec<bf16>,
    dx: Vec<bf16>,
}

impl Tensors {
    fn new(op: &KronOp, rows: usize) -> Self {
        let wave = |len: usize, step: f32| (0..len).map(move |i| (i as f32 * step).sin());
        let halves = |len, step| wave(len, step).map(bf16::from_f32).collect();
        let (n_in, n_out) = (rows * op.shape.d_in(), rows * op.shape.d_out());
        Self {
            theta: Theta::random(op.shape, 1).into_vec(),
            t: vec![0.0; op.t_len(rows)],
            grad: vec![0.0; op.shape.params()],
            x: halves(n_in, 0.37),
            y: halves(n_out, 0.11),
            dy: halves(n_out, 0.73),
            dx: vec![bf16::ZERO; n_in],
        }
    }

    /// Computes the same step with kron-core's CPU backend.
    fn step_on_cpu(&mut self, op: &KronOp, rows: usize) -> Result<()> {
        let (cpu, dim_in, dim_out) = (Cpu::new(), (rows, op.shape.d_in()), (rows, op.shape.d_out()));
        let mut workspace = vec![0.0; workspace_len(&cpu, op, rows)];
        let view = |dim, data| ArrayView2::from_shape(dim, data).expect("rows × columns elements");
        let forward: Forward<'_, Cpu, bf16> = Forward {
            theta: &self.theta,
            x: view(dim_in, &self.x),
            y: ArrayViewMut2::from_shape(dim_out, &mut self.y).expect("rows × d_out elements"),
            accum: Accum::Add,
            t: &mut self.t,
            workspace: &mut workspace,
            dropout: None,
        };
        cpu.forward(op, forward)?;
        let dx = ArrayViewMut2::from_shape(dim_in, &mut self.dx).expect("rows × d_in elements");
        let backward: Backward<'_, Cpu, bf16> = Backward {
            theta: &self.theta,
            x: view(dim_in, &self.x),
            t: &self.t,
            dy: view(dim_out, &self.dy),
            dx: Some((dx, Accum::Replace)),
            grad: &mut self.grad,
            workspace: &mut workspace,
            dropout: None,
        };
        cpu.backward(op, backward)
    }

    /// Prints the largest error against `want`, and fails if it is larger than 2 % of the largest value.
    fn compare(&self, name: &str, want: &Self) {
        let wide = |v: &[bf16]| v.iter().map(|e| e.to_f32()).collect::<Vec<_>>();
        for (what, got, want) in [
            ("Y", wide(&self.y), wide(&want.y)),
            ("dX", wide(&self.dx), wide(&want.dx)),
            ("gradient", self.grad.clone(), want.grad.clone()),
        ] {
            let error = got.iter().zip(&want).fold(0f32, |e, (a, b)| e.max((a - b).abs()));
            let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            println!("{name}: {what} has {} elements up to {largest:.3}, error {error:.1e}", got.len());
            assert!(largest > 0.01 && error <= 0.02 * largest, "{name}: {what} is wrong");
        }
    }
}

/// The step with emulated kernels, on host memory.
fn on_the_host(op: &KronOp, rows: usize, mut on: Tensors) -> Result<Tensors> {
    let cuda = Cuda::with(Emulated::new());
    let mut workspace = vec![0f32; workspace_len(&cuda, op, rows)];
    let pointers = Pointers {
        theta: on.theta.as_ptr() as u64,
        t: on.t.as_mut_ptr() as u64,
        grad: on.grad.as_mut_ptr() as u64,
        workspace: workspace.as_mut_ptr() as u64,
        x: on.x.as_ptr() as u64,
        y: on.y.as_mut_ptr() as u64,
        dy: on.dy.as_ptr() as u64,
        dx: on.dx.as_mut_ptr() as u64,
    };
    // SAFETY: the vectors have the shape's lengths and outlive the call, which the emulator runs to its end.
    unsafe { train_step(&cuda, 0, op, rows, &pointers, workspace.len()) }?;
    Ok(on)
}

/// The step on device 0, on a stream of its own.
#[cfg(feature = "cuda")]
fn on_the_gpu(gpu: kron_kernels::Gpu, op: &KronOp, rows: usize, mut on: Tensors) -> Result<Tensors> {
    let cuda = Cuda::with(gpu);
    let gpu = cuda.launcher();
    let (theta, x, dy) = (gpu.upload(&on.theta)?, gpu.upload(&on.x)?, gpu.upload(&on.dy)?);
    let (mut t, mut grad) = (gpu.upload(&on.t)?, gpu.upload(&on.grad)?);
    let (mut y, mut dx) = (gpu.upload(&on.y)?, gpu.upload(&on.dx)?);
    let mut workspace = gpu.upload(&vec![0f32; workspace_len(&cuda, op, rows)])?;
    let pointers = Pointers {
        theta: theta.slice().pointer(),
        t: t.slice_mut().pointer(),
        grad: grad.slice_mut().pointer(),
        workspace: workspace.slice_mut().pointer(),
        x: x.slice().pointer(),
        y: y.slice_mut().pointer(),
        dy: dy.slice().pointer(),
        dx: dx.slice_mut().pointer(),
    };
    gpu.synchronize()?; // the uploads end before another stream begins
    let stream = gpu.context().new_stream().expect("the device has memory for a stream");
    let (handle, len) = (stream.cu_stream() as u64, workspace.slice().len());
    // SAFETY: the memory has the shape's lengths; reading it back waits for the stream, which lives until then.
    unsafe { train_step(&cuda, handle, op, rows, &pointers, len) }?;
    y.read(&mut on.y)?;
    dx.read(&mut on.dx)?;
    grad.read(&mut on.grad)?;
    Ok(on)
}

fn main() -> Result<()> {
    let shape = KronShape::kron(LayerDims { d_out: 512, d_in: 384 }, Split { a_out: 8, a_in: 2 }, 8)?;
    let (op, rows) = (KronOp::new(shape, Scale::alpha_over_r(16.0, 8)?), 40);
    let tensors = Tensors::new(&op, rows);
    let mut want = tensors.clone();
    want.step_on_cpu(&op, rows)?;
    on_the_host(&op, rows, tensors.clone())?.compare("emulated", &want);
    #[cfg(feature = "cuda")]
    match kron_kernels::Gpu::new(0) {
        Ok(gpu) => on_the_gpu(gpu, &op, rows, tensors)?.compare("GPU", &want),
        Err(error) => println!("GPU: skipped, {error}"),
    }
    Ok(())
}

#[test]
fn all_devices_compute_the_same_step() {
    main().expect("each device of this machine runs");
}
