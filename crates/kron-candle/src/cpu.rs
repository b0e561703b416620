//! [`DeviceOps`] on the CPU: candle's storage as views of kron-core.

use candle_core::backend::BackendStorage;
use candle_core::op::Add;
use candle_core::{CpuStorage, DType, Layout, Result, Storage};
use kron_core::{Accum, Backend, Cpu, KronOp, Pass};
use ndarray::Array2;

use crate::base::FrozenLinear;
use crate::device_ops::{Activation, BackwardInputs, DeviceOps, ForwardInputs, Operand, Term};
use crate::product::{Threads, product};
use crate::terms::{self, Kept};
use crate::views::{elements, elements_mut, matrix, view_mut};

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

    fn forward<E: Activation>(terms: &[Term], inputs: ForwardInputs<Self>, y: &mut Self) -> Result<Self> {
        Ok(Self::F32(terms::forward::<E>(terms, elements(inputs.theta)?, inputs.x, &mut [y])?))
    }

    fn backward<E: Activation>(
        terms: &[Term],
        BackwardInputs { theta, x, t, dy }: BackwardInputs<Self>,
        dx: Option<&mut Self>,
    ) -> Result<Self> {
        let kept = Kept { theta: elements(theta)?, x, t: elements(t)? };
        Ok(Self::F32(terms::backward::<E>(terms, kept, &[dy], dx)?))
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

/// Adds the product of x, n × k, and m, k × cols, to `y`; float32 operands without a second y.
pub(crate) fn add_product(
    y: &mut CpuStorage,
    (x, x_layout): Operand<CpuStorage>,
    (m, m_layout): Operand<CpuStorage>,
    rows: usize,
) -> Result<()> {
    let (inner, cols) = m_layout.shape().dims2()?;
    let flat = Layout::contiguous_with_offset((rows, inner), x_layout.start_offset());
    if let (Some(x), Some(m), CpuStorage::F32(y)) = (matrix(x, &flat), matrix(m, m_layout), &mut *y) {
        return product(view_mut(rows, cols, y)?, Accum::Add, x, m, Threads::All);
    }
    let (more, whole) =
        (CpuStorage::product((x, x_layout), (m, m_layout), rows)?, Layout::contiguous((rows, cols)));
    *y = y.binary_impl::<Add>(&more, &whole, &whole)?;
    Ok(())
}
