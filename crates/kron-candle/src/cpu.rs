//! [`DeviceOps`] on the CPU: candle's storage as views of kron-core.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, WithDType, bail};
use kron_core::{Accum, Backend, Cpu, DropoutKey, Element, KronOp, Pass};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, ShapeBuilder};

use crate::base::FrozenLinear;
use crate::device_ops::{Activation, BackwardInputs, DeviceOps, ForwardInputs, Operand, range};
use crate::product::{Threads, product};

/// Views a float32 operand as a matrix; `None` for another dtype, and for one with repeated elements.
fn matrix<'a>(storage: &'a CpuStorage, layout: &Layout) -> Option<ArrayView2<'a, f32>> {
    let (CpuStorage::F32(values), &[rows, columns]) = (storage, layout.dims()) else { return None };
    let shape = (rows, columns).strides((layout.stride()[0], layout.stride()[1]));
    ArrayView2::from_shape(shape, values.get(layout.start_offset()..)?).ok()
}

impl DeviceOps for CpuStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        match storage {
            Storage::Cpu(storage) => Some(storage),
            _ => None,
        }
    }

    fn into_storage(self) -> Storage {
        Storage::Cpu(self)
    }

    fn len_of<E: Activation>(&self) -> Result<usize> {
        Ok(self.as_slice::<E>()?.len())
    }

    fn product((x, x_layout): Operand<Self>, (m, m_layout): Operand<Self>, rows: usize) -> Result<Self> {
        let (inner, cols) = m_layout.shape().dims2()?;
        let x_layout = Layout::contiguous_with_offset((rows, inner), x_layout.start_offset());
        let size = (1, rows, cols, inner);
        let dtype = x.dtype();
        if let (Some(x), Some(m)) = (matrix(x, &x_layout), matrix(m, m_layout)) {
            let mut y = Array2::zeros((rows, cols));
            product(y.view_mut(), Accum::Replace, x, m, Threads::All)?;
            return Ok(Self::F32(y.into_raw_vec_and_offset().0));
        }
        if !matches!(dtype, DType::F16 | DType::BF16) {
            return x.matmul(m, size, &x_layout, m_layout);
        }
        // candle's CPU product lacks bf16, and sums short products of f16 in f16.
        let (x, m) = (x.to_dtype(&x_layout, DType::F32)?, m.to_dtype(m_layout, DType::F32)?);
        let [x_layout, m_layout, y_layout] =
            [(rows, inner), (inner, cols), (rows, cols)].map(Layout::contiguous);
        let y = Self::product((&x, &x_layout), (&m, &m_layout), rows)?;
        y.to_dtype(&y_layout, dtype)
    }

    fn add_bias<E: Activation>(y: &mut Self, bias: Operand<Self>) -> Result<()> {
        let (y, bias) = (elements_mut::<E>(y)?, elements::<E>(bias)?);
        for row in y.chunks_exact_mut(bias.len().max(1)) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y = E::from_f32(y.to_f32() + b.to_f32()));
        }
        Ok(())
    }

    fn base_forward(base: &dyn FrozenLinear, (x, layout): Operand<Self>) -> Result<Self> {
        base.cpu_forward(x, layout)
    }

    fn base_backward(base: &dyn FrozenLinear, (dy, layout): Operand<Self>) -> Result<Self> {
        base.cpu_backward(dy, layout)
    }

    fn forward<E: Activation>(
        op: &KronOp,
        ForwardInputs { theta, x }: ForwardInputs<Self>,
        y: &mut Self,
        key: Option<DropoutKey>,
    ) -> Result<Self> {
        let (cpu, y) = (Cpu::new(), elements_mut::<E>(y)?);
        let rows = y.len() / op.shape.d_out();
        let mut t = vec![0.0; op.t_len(rows)];
        let mut workspace = vec![0.0; cpu.workspace_len(op, Pass::Forward, rows)];
        let call = kron_core::Forward {
            theta: elements(theta)?,
            x: view(rows, op.shape.d_in(), elements::<E>(x)?)?,
            y: view_mut(rows, op.shape.d_out(), y)?,
            accum: Accum::Add,
            t: t.as_mut_slice(),
            workspace: workspace.as_mut_slice(),
            dropout: key,
        };
        cpu.forward(op, call).map_err(candle_core::Error::wrap)?;
        Ok(CpuStorage::F32(t))
    }

    fn backward<E: Activation>(
        op: &KronOp,
        BackwardInputs { theta, x, t, dy }: BackwardInputs<Self>,
        dx: Option<&mut Self>,
        key: Option<DropoutKey>,
    ) -> Result<Self> {
        let (cpu, dy) = (Cpu::new(), elements::<E>(dy)?);
        let (d_in, d_out) = (op.shape.d_in(), op.shape.d_out());
        let rows = dy.len() / d_out;
        let mut grad = vec![0.0; op.shape.params()];
        let pass = Pass::Backward { dx: dx.is_some() };
        let mut workspace = vec![0.0; cpu.workspace_len(op, pass, rows)];
        let dx = match dx {
            Some(dx) => Some((view_mut(rows, d_in, elements_mut::<E>(dx)?)?, Accum::Add)),
            None => None,
        };
        let call = kron_core::Backward {
            theta: elements(theta)?,
            x: view(rows, d_in, elements(x)?)?,
            t: elements(t)?,
            dy: view(rows, d_out, dy)?,
            dx,
            grad: grad.as_mut_slice(),
            workspace: workspace.as_mut_slice(),
            dropout: key,
        };
        cpu.backward(op, call).map_err(candle_core::Error::wrap)?;
        Ok(CpuStorage::F32(grad))
    }

    fn merge<E: Activation>(op: &KronOp, theta: Operand<Self>, w: &mut Self) -> Result<()> {
        let (cpu, rows) = (Cpu::new(), op.shape.d_out());
        let mut workspace = vec![0.0; cpu.workspace_len(op, Pass::Merge, rows)];
        let call = kron_core::Merge {
            theta: elements(theta)?,
            w: view_mut(rows, op.shape.d_in(), elements_mut::<E>(w)?)?,
            first_row: 0,
            accum: Accum::Add,
            workspace: workspace.as_mut_slice(),
        };
        cpu.merge(op, call).map_err(candle_core::Error::wrap)
    }
}

/// Returns the elements of a contiguous operand.
pub(crate) fn elements<E: WithDType>((storage, layout): Operand<'_, CpuStorage>) -> Result<&[E]> {
    Ok(&storage.as_slice::<E>()?[range(layout)?])
}

/// Returns the elements of a storage just made by an op.
pub(crate) fn elements_mut<E: Activation>(storage: &mut CpuStorage) -> Result<&mut [E]> {
    let dtype = storage.dtype();
    match E::slice_mut(storage) {
        Some(elements) => Ok(elements),
        None => bail!("a tensor is {dtype:?}, but {} was expected", <E as Element>::DTYPE),
    }
}

/// Views elements as a matrix.
pub(crate) fn view<E>(rows: usize, cols: usize, elements: &[E]) -> Result<ArrayView2<'_, E>> {
    ArrayView2::from_shape((rows, cols), elements).map_err(|_| wrong_len(rows, cols, elements.len()))
}

/// Views elements as a matrix to write.
pub(crate) fn view_mut<E>(rows: usize, cols: usize, elements: &mut [E]) -> Result<ArrayViewMut2<'_, E>> {
    let len = elements.len();
    ArrayViewMut2::from_shape((rows, cols), elements).map_err(|_| wrong_len(rows, cols, len))
}

fn wrong_len(rows: usize, cols: usize, got: usize) -> candle_core::Error {
    candle_core::Error::msg(format!("an operand has {got} elements, but {rows} rows of {cols} were expected"))
}
