//! From candle's CPU storage to kron-core's views and back: the one place that
//! knows both.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, WithDType, bail};
use kron_core::{Accum, Backend, Backward, Cpu, DropoutKey, Element, Forward, KronOp, Merge, Pass};
use ndarray::{ArrayView2, ArrayViewMut2};

/// X or θ as an op gets it.
pub(crate) type Operand<'a> = (&'a CpuStorage, &'a Layout);

/// Adds the adapter's output to `y`, n × d_out; returns T.
pub(crate) fn forward(
    op: &KronOp,
    x: Operand,
    theta: Operand,
    y: &mut CpuStorage,
    key: Option<DropoutKey>,
) -> Result<Vec<f32>> {
    match y {
        CpuStorage::F32(y) => forward_as(op, x, theta, y, key),
        CpuStorage::F16(y) => forward_as(op, x, theta, y, key),
        CpuStorage::BF16(y) => forward_as(op, x, theta, y, key),
        other => bail!("activations are {:?}, but an adapter takes f32, f16 or bf16", other.dtype()),
    }
}

fn forward_as<E: Element + WithDType>(
    op: &KronOp,
    x: Operand,
    theta: Operand,
    y: &mut [E],
    key: Option<DropoutKey>,
) -> Result<Vec<f32>> {
    let (cpu, rows) = (Cpu::new(), y.len() / op.shape.d_out());
    let mut t = vec![0.0; op.t_len(rows)];
    let mut workspace = vec![0.0; cpu.workspace_len(op, Pass::Forward, rows)];
    let call = Forward {
        theta: numbers(theta)?,
        x: view(rows, op.shape.d_in(), numbers(x)?)?,
        y: view_mut(rows, op.shape.d_out(), y)?,
        accum: Accum::Add,
        t: t.as_mut_slice(),
        workspace: workspace.as_mut_slice(),
        dropout: key,
    };
    cpu.forward(op, call).map_err(candle_core::Error::wrap)?;
    Ok(t)
}

/// dθ; dX is added to `dx`, n × d_in, where it is wanted.
pub(crate) fn backward(
    op: &KronOp,
    [x, theta, dy]: [Operand; 3],
    t: &[f32],
    dx: Option<&mut CpuStorage>,
    key: Option<DropoutKey>,
) -> Result<Vec<f32>> {
    match (dy.0.dtype(), dx) {
        (DType::F32, None) => backward_as::<f32>(op, [x, theta, dy], t, None, key),
        (DType::F16, None) => backward_as::<half::f16>(op, [x, theta, dy], t, None, key),
        (DType::BF16, None) => backward_as::<half::bf16>(op, [x, theta, dy], t, None, key),
        (_, Some(CpuStorage::F32(dx))) => backward_as(op, [x, theta, dy], t, Some(dx), key),
        (_, Some(CpuStorage::F16(dx))) => backward_as(op, [x, theta, dy], t, Some(dx), key),
        (_, Some(CpuStorage::BF16(dx))) => backward_as(op, [x, theta, dy], t, Some(dx), key),
        (other, _) => bail!("a gradient is {other:?}, but an adapter takes f32, f16 or bf16"),
    }
}

fn backward_as<E: Element + WithDType>(
    op: &KronOp,
    [x, theta, dy]: [Operand; 3],
    t: &[f32],
    dx: Option<&mut Vec<E>>,
    key: Option<DropoutKey>,
) -> Result<Vec<f32>> {
    let (cpu, dy) = (Cpu::new(), numbers::<E>(dy)?);
    let rows = dy.len() / op.shape.d_out();
    let mut grad = vec![0.0; op.shape.params()];
    let mut workspace = vec![0.0; cpu.workspace_len(op, Pass::Backward, rows)];
    let dx = dx.map(|dx| Ok::<_, candle_core::Error>((view_mut(rows, op.shape.d_in(), dx)?, Accum::Add)));
    let call = Backward {
        theta: numbers(theta)?,
        x: view(rows, op.shape.d_in(), numbers(x)?)?,
        t,
        dy: view(rows, op.shape.d_out(), dy)?,
        dx: dx.transpose()?,
        grad: grad.as_mut_slice(),
        workspace: workspace.as_mut_slice(),
        dropout: key,
    };
    cpu.backward(op, call).map_err(candle_core::Error::wrap)?;
    Ok(grad)
}

/// W + ΔW, d_out × d_in.
pub(crate) fn merge(op: &KronOp, theta: &[f32], w: &mut CpuStorage) -> Result<()> {
    match w {
        CpuStorage::F32(w) => merge_as(op, theta, w),
        CpuStorage::F16(w) => merge_as(op, theta, w),
        CpuStorage::BF16(w) => merge_as(op, theta, w),
        other => bail!("the weight is {:?}, but an adapter merges into f32, f16 or bf16", other.dtype()),
    }
}

fn merge_as<E: Element>(op: &KronOp, theta: &[f32], w: &mut [E]) -> Result<()> {
    let (cpu, rows) = (Cpu::new(), op.shape.d_out());
    let mut workspace = vec![0.0; cpu.workspace_len(op, Pass::Merge, rows)];
    let w = view_mut(rows, op.shape.d_in(), w)?;
    let call = Merge { theta, w, first_row: 0, accum: Accum::Add, workspace: workspace.as_mut_slice() };
    cpu.merge(op, call).map_err(candle_core::Error::wrap)
}

/// X·M for an n × k and a k × m operand, whatever their strides.
pub(crate) fn product((x, x_layout): Operand, (m, m_layout): Operand, rows: usize) -> Result<CpuStorage> {
    let (inner, cols) = m_layout.shape().dims2()?;
    let x_layout = Layout::contiguous_with_offset((rows, inner), x_layout.start_offset());
    let size = (1, rows, cols, inner);
    let dtype = x.dtype();
    if !matches!(dtype, DType::F16 | DType::BF16) {
        return x.matmul(m, size, &x_layout, m_layout);
    }
    // candle's host product has no bf16, and adds up short products of f16 in f16.
    let (x, m) = (x.to_dtype(&x_layout, DType::F32)?, m.to_dtype(m_layout, DType::F32)?);
    let [x_layout, m_layout, y_layout] = [(rows, inner), (inner, cols), (rows, cols)].map(Layout::contiguous);
    x.matmul(&m, size, &x_layout, &m_layout)?.to_dtype(&y_layout, dtype)
}

/// Adds the bias to every row of `y`.
pub(crate) fn add_bias(y: &mut CpuStorage, bias: Operand) -> Result<()> {
    fn add<E: Element>(y: &mut [E], bias: &[E]) {
        for row in y.chunks_exact_mut(bias.len().max(1)) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y = E::from_f32(y.to_f32() + b.to_f32()));
        }
    }
    match y {
        CpuStorage::F32(y) => add(y, numbers(bias)?),
        CpuStorage::F16(y) => add(y, numbers(bias)?),
        CpuStorage::BF16(y) => add(y, numbers(bias)?),
        other => bail!("activations are {:?}, but an adapter takes f32, f16 or bf16", other.dtype()),
    }
    Ok(())
}

/// The numbers of a contiguous operand.
pub(crate) fn numbers<E: WithDType>((storage, layout): Operand<'_>) -> Result<&[E]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<E>()?[start..end]),
        None => bail!("an operand of an adapter has strides {:?}, but it is contiguous", layout.stride()),
    }
}

fn view<E>(rows: usize, cols: usize, numbers: &[E]) -> Result<ArrayView2<'_, E>> {
    ArrayView2::from_shape((rows, cols), numbers).map_err(|_| sizes(rows, cols, numbers.len()))
}

fn view_mut<E>(rows: usize, cols: usize, numbers: &mut [E]) -> Result<ArrayViewMut2<'_, E>> {
    let len = numbers.len();
    ArrayViewMut2::from_shape((rows, cols), numbers).map_err(|_| sizes(rows, cols, len))
}

fn sizes(rows: usize, cols: usize, got: usize) -> candle_core::Error {
    candle_core::Error::msg(format!("an operand has {got} numbers, but {rows} rows of {cols} were expected"))
}
