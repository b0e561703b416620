//! One executor for every engine: runs the programs of `program.rs` on a device.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use kron_core::{Backend, Backward, Error, Forward, KronOp, Merge, Pass, Result, Theta};
use kron_kernels::{DeviceSlice, DeviceSliceMut, Rows, RowsMut};
use ndarray::Array2;

use super::buffer::Buffer;
use super::gpu::{Buffers, Device, DeviceBuffer, Number};
use super::lt::{CublasLt, Planned, Type, type_of};
use super::product::Product;
use super::program::{Call, Program, Scratch, Step};
use crate::data::flat;
use crate::schedule::Entry;

/// One way to compute one layer's forward and backward on the device. Its calls queue work.
pub struct Engine<E> {
    /// Absent for the base layer.
    op: Option<KronOp>,
    rows: usize,
    program: Program,
    forward: Vec<Ready>,
    backward: Vec<Ready>,
    /// The buffers that do not belong to a set.
    own: Buffers<E>,
    /// The workspace of kron-core's calls.
    workspace: DeviceBuffer<E>,
}

/// A step that can be queued.
enum Ready {
    Product(Box<Planned>),
    Ours(Call),
}

impl<E: Number> Engine<E> {
    /// Builds the engine of an entry, for sets of `rows` rows.
    ///
    /// # Errors
    /// Fails if the device or cuBLASLt does.
    pub fn new(
        device: &Device,
        library: &Rc<CublasLt>,
        entry: &Entry,
        theta: Option<&Theta>,
        weight: Option<&Arc<Array2<E>>>,
        rows: usize,
    ) -> Result<Self> {
        let program = Program::new(entry.kind, &entry.problem, rows)?;
        let op = entry.problem.op();
        let workspace = op.map_or(0, |op| {
            let len = |pass| device.cuda.workspace_len(&op, pass, rows);
            let merge = device.cuda.workspace_len(&op, Pass::Merge, op.shape.d_out());
            len(Pass::Forward).max(len(Pass::Backward { dx: true })).max(merge)
        });
        let ours = |step: &Step| matches!(step, Step::Ours(_));
        let needed = program.forward.iter().chain(&program.backward).any(ours);
        Ok(Self {
            op,
            rows,
            forward: ready(library, &program, &program.forward, type_of(E::DTYPE))?,
            backward: ready(library, &program, &program.backward, type_of(E::DTYPE))?,
            own: own(device, &program, theta, weight)?,
            workspace: DeviceBuffer::Float(device.zeros(if needed { workspace } else { 0 })?),
            program,
        })
    }

    /// Returns the lengths of the buffers that this engine uses.
    pub const fn lens(&self) -> &BTreeMap<Buffer, usize> {
        &self.program.lens
    }

    /// Adds the adapter's output to Y (a whole layer overwrites it) and keeps T.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn forward(&self, device: &Device, set: &Buffers<E>) -> Result<()> {
        self.forward.iter().try_for_each(|step| self.queue(device, set, step))
    }

    /// Adds to dX (`kron-first` overwrites it) and to the gradient.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn backward(&self, device: &Device, set: &Buffers<E>) -> Result<()> {
        self.backward.iter().try_for_each(|step| self.queue(device, set, step))
    }

    /// Runs every step on a set and keeps the fastest algorithm of each product.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn tune(&mut self, device: &mut Device, set: &Buffers<E>) -> Result<()> {
        let steps = [std::mem::take(&mut self.forward), std::mem::take(&mut self.backward)];
        let [forward, back] = steps.map(|mut list| {
            let tuned = list.iter_mut().try_for_each(|step| match step {
                Ready::Product(planned) => {
                    let at = self.places(device, set, &planned.product)?;
                    // SAFETY: `places` checked the product against the buffers.
                    unsafe { planned.tune(device, at) }
                }
                Ready::Ours(call) => self.call(device, set, *call),
            });
            tuned.map(|()| list)
        });
        (self.forward, self.backward) = (forward?, back?);
        Ok(())
    }

    /// Returns the gradient, \[dA | dB | dC\].
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn grad(&self, device: &Device) -> Result<Vec<f32>> {
        let parts = GRADIENTS.iter().filter(|b| self.program.len(**b) > 0);
        let parts = parts.map(|&b| self.own.get(b)?.download(device));
        Ok(parts.collect::<Result<Vec<_>>>()?.concat())
    }

    /// Sets the gradient to 0.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn clear(&mut self, device: &Device) -> Result<()> {
        self.own.0.iter_mut().filter(|(b, _)| GRADIENTS.contains(b)).try_for_each(|(_, m)| m.clear(device))
    }

    /// Returns the weight that merging changes; `None` for other engines.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn merged(&self, device: &Device) -> Result<Option<Array2<E>>> {
        let merges = |step: &Ready| matches!(step, Ready::Ours(Call::Merge(Buffer::W, _)));
        let (Some(op), true) = (self.op, self.forward.iter().any(merges)) else { return Ok(None) };
        let DeviceBuffer::Own(w) = self.own.get(Buffer::W)? else { return Ok(None) };
        let data = device.download(w)?;
        let shape = (op.shape.d_out(), op.shape.d_in());
        Array2::from_shape_vec(shape, data).map(Some).map_err(|e| Error::Shape(e.to_string()))
    }

    /// Returns the bytes of T and of buffers kept between calls.
    pub fn scratch_bytes(&self) -> usize {
        let bytes = |kept: Scratch| kept.len * if kept.float32 { size_of::<f32>() } else { size_of::<E>() };
        self.program.scratch().map(bytes).sum::<usize>() + size_of::<f32>() * self.workspace.len()
    }

    fn queue(&self, device: &Device, set: &Buffers<E>, step: &Ready) -> Result<()> {
        match step {
            Ready::Product(planned) => {
                let at = self.places(device, set, &planned.product)?;
                // SAFETY: `places` checked the product against the buffers.
                unsafe { planned.run(at) }
            }
            Ready::Ours(call) => self.call(device, set, *call),
        }
    }

    /// Checks that the product stays inside its buffers, and returns the starts of A, B and C.
    fn places(&self, device: &Device, set: &Buffers<E>, product: &Product) -> Result<[u64; 3]> {
        product.check(|buffer| self.at(set, buffer).map_or(0, DeviceBuffer::len))?;
        let start = |buffer| self.at(set, buffer).map(|memory| memory.start(device));
        Ok([start(product.a.buffer)?, start(product.b.buffer)?, start(product.c.buffer)?])
    }

    fn at<'a>(&'a self, set: &'a Buffers<E>, buffer: Buffer) -> Result<&'a DeviceBuffer<E>> {
        if buffer.of_set() { set.get(buffer) } else { self.own.get(buffer) }
    }

    fn call(&self, device: &Device, set: &Buffers<E>, call: Call) -> Result<()> {
        let Some(op) = self.op else { return Err(Error::Unsupported("a base layer has no adapter".into())) };
        let (n, s) = (self.rows, &op.shape);
        let start =
            |buffer| Ok::<_, Error>((self.at(set, buffer)?.start(device), self.at(set, buffer)?.len()));
        // SAFETY: of this and the next four: the memory is of the device's context and outlives the
        // work that is queued on its one stream, and the operands of a call are different buffers.
        let reads = |b| start(b).map(|(at, len)| unsafe { DeviceSlice::<f32>::from_raw(at, len) });
        // SAFETY: as above.
        let writes = |b| start(b).map(|(at, len)| unsafe { DeviceSliceMut::<f32>::from_raw(at, len) });
        // SAFETY: as above.
        let data = |b| start(b).map(|(at, len)| unsafe { DeviceSlice::<E>::from_raw(at, len) });
        // SAFETY: as above.
        let data_mut = |b| start(b).map(|(at, len)| unsafe { DeviceSliceMut::<E>::from_raw(at, len) });
        let rows = |b, width| Ok::<_, Error>(Rows { data: data(b)?, rows: n, stride: width });
        let rows_mut = |b, width, rows| Ok::<_, Error>(RowsMut { data: data_mut(b)?, rows, stride: width });
        // SAFETY: as above.
        let workspace =
            unsafe { DeviceSliceMut::from_raw(self.workspace.start(device), self.workspace.len()) };
        let theta = reads(Buffer::Theta)?;
        match call {
            Call::Forward(accum) => {
                let (x, y) = (rows(Buffer::X, s.d_in())?, rows_mut(Buffer::Y, s.d_out(), n)?);
                let t = writes(Buffer::T)?;
                device.cuda.forward(&op, Forward { theta, x, y, accum, t, workspace, dropout: None })
            }
            Call::Backward(_) | Call::Gradient => {
                let (x, dy) = (rows(Buffer::X, s.d_in())?, rows(Buffer::Dy, s.d_out())?);
                let (t, grad) = (reads(Buffer::T)?, writes(Buffer::Grad)?);
                let dx = match call {
                    Call::Backward(accum) => Some((rows_mut(Buffer::Dx, s.d_in(), n)?, accum)),
                    _ => None,
                };
                device.cuda.backward(&op, Backward { theta, x, t, dy, dx, grad, workspace, dropout: None })
            }
            Call::Merge(into, accum) => {
                let w = rows_mut(into, s.d_in(), s.d_out())?;
                device.cuda.merge(&op, Merge { theta, w, first_row: 0, accum, workspace })
            }
        }
    }
}

/// The buffers of the gradient, in the order of θ.
const GRADIENTS: [Buffer; 4] = [Buffer::Grad, Buffer::DA, Buffer::DB, Buffer::DC];

/// Asks cuBLASLt for the algorithms of every product among the steps.
fn ready(library: &Rc<CublasLt>, program: &Program, steps: &[Step], activations: Type) -> Result<Vec<Ready>> {
    let of = |b: Buffer| if b.is_float() { Type::CUDA_R_32F } else { activations };
    let one = |step: &Step| match *step {
        Step::Ours(call) => Ok(Ready::Ours(call)),
        Step::Product(p) => {
            p.check(|buffer| program.len(buffer))?;
            let types = [p.a.buffer, p.b.buffer, p.c.buffer].map(of);
            Ok(Ready::Product(Box::new(library.plan(&p, types)?)))
        }
    };
    steps.iter().map(one).collect()
}

/// Allocates the buffers of an engine beside a set: factors, gradients, a weight, scratch.
fn own<E: Number>(
    device: &Device,
    program: &Program,
    theta: Option<&Theta>,
    weight: Option<&Arc<Array2<E>>>,
) -> Result<Buffers<E>> {
    let rounded = |values: &[f32]| {
        Ok(DeviceBuffer::Own(device.upload(&values.iter().map(|&v| E::from_f32(v)).collect::<Vec<E>>())?))
    };
    let one = |(&buffer, &len): (&Buffer, &usize)| {
        let memory = match (buffer, theta, weight) {
            (Buffer::A, Some(theta), _) => rounded(theta.a()),
            (Buffer::B, Some(theta), _) => rounded(theta.b()),
            (Buffer::C, Some(theta), _) => rounded(theta.c()),
            (Buffer::Theta, Some(theta), _) => Ok(DeviceBuffer::Float(device.upload(theta.as_slice())?)),
            (Buffer::W, _, Some(weight)) => Ok(DeviceBuffer::Own(device.upload(flat(weight))?)),
            (Buffer::Ones, ..) => rounded(&vec![1.0; len]),
            (b, ..) if b.is_float() => Ok(DeviceBuffer::Float(device.zeros(len)?)),
            _ => Ok(DeviceBuffer::Own(device.zeros(len)?)),
        };
        memory.map(|memory| (buffer, memory))
    };
    let list = program.lens.iter().filter(|(b, _)| !b.of_set());
    Ok(Buffers(list.map(one).collect::<Result<_>>()?))
}
