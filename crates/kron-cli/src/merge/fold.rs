//! Changes of a band of rows of a tensor: ΔW is added, rows or columns are rescaled, other values are added or take
//! the tensor's place.

use kron_adapter::elements::first_not_finite;
use kron_adapter::extras::Magnitude;
use kron_adapter::resolve::PlacedExperts;
use kron_adapter::{Layer, with_dtype};
use kron_core::{Accum, Backend, Cpu, Dtype, Element, KronOp, Merge, Pass, Scale, Theta};
use ndarray::ArrayViewMut2;
use rayon::prelude::*;

use super::rescale::Rescale;
use super::transpose::transpose;
use crate::{Error, Result};

// The bytes of a safetensors file, which are little-endian, are used as values without conversion.
const _: () = assert!(cfg!(target_endian = "little"), "kron merge needs a little-endian machine");

/// Bytes of a band. A band is small enough to stay in cache between reading and writing, and
/// large enough that packing C once for each band costs little.
pub const BAND: usize = 4 << 20;
/// Values that are widened to float32 at once, which stay in cache through all changes.
const WIDE: usize = 1 << 18;
/// Values of a part of a band, for one thread.
const PART: usize = 1 << 16;

/// Changes of one tensor of the model, in its dtype. They are made in float32, and the last one's result is
/// rounded once.
pub struct Fold<'a> {
    steps: Vec<Step<'a>>,
    dtype: Dtype,
    rows: usize,
    columns: usize,
}

enum Step<'a> {
    /// ΔW, in the orientation of the tensor.
    Delta(KronOp, Theta),
    /// ΔW of each expert, of so many rows, one below the other.
    Experts(usize, Vec<(KronOp, Theta)>),
    /// DoRA, after the ΔW of its layer.
    Rescale(Rescale<'a>),
    /// Values that are added, multiplied by a scale.
    Add(&'a [f32], f32),
    /// Values that take the tensor's place.
    Replace(&'a [f32]),
    /// Rows that take the place of those with these indices.
    Rows(&'a [usize], &'a [f32]),
}

/// Memory that bands share.
#[derive(Default)]
pub struct Workspace {
    kernel: Vec<f32>,
    wide: Vec<f32>,
}

impl<'a> Fold<'a> {
    /// Makes a fold without a change, of a tensor of this size.
    pub const fn new(dtype: Dtype, rows: usize, columns: usize) -> Self {
        Self { steps: Vec::new(), dtype, rows, columns }
    }

    /// Adds a layer's ΔW, multiplied by `weight`, or its transpose (A ⊗ (B·C))ᵀ = Aᵀ ⊗ (Cᵀ·Bᵀ).
    ///
    /// # Errors
    /// The product of the scale and the weight is not finite.
    pub fn add_delta(&mut self, layer: &Layer, weight: f64, is_transposed: bool) -> Result<()> {
        let theta = if is_transposed { transpose(layer.theta())? } else { layer.theta().clone() };
        let scale = weighted(layer.scaling().scale(), weight)?;
        self.steps.push(Step::Delta(KronOp::new(*theta.shape(), scale), theta));
        Ok(())
    }

    /// Adds the ΔW of a stack of experts, multiplied by `weight`.
    ///
    /// # Errors
    /// The product of the scale and the weight is not finite.
    pub fn add_experts(&mut self, placed: PlacedExperts, weight: f64) -> Result<()> {
        let scale = weighted(placed.scale, weight)?;
        let deltas = placed.experts.into_iter().map(|theta| (KronOp::new(*theta.shape(), scale), theta));
        let deltas: Vec<_> = deltas.collect();
        self.steps.push(Step::Experts(self.rows / deltas.len().max(1), deltas));
        Ok(())
    }

    /// Rescales W + ΔW by the magnitude of a layer.
    pub fn rescale(&mut self, magnitude: &'a Magnitude, is_transposed: bool) {
        self.steps.push(Step::Rescale(Rescale::new(magnitude, is_transposed)));
    }

    /// Adds values, multiplied by a scale.
    pub fn add_values(&mut self, values: &'a [f32], scale: f32) {
        self.steps.push(Step::Add(values, scale));
    }

    /// Puts values in the tensor's place.
    pub fn replace(&mut self, values: &'a [f32]) {
        self.steps.push(Step::Replace(values));
    }

    /// Puts rows in the place of those with these indices.
    pub fn replace_rows(&mut self, indices: &'a [usize], rows: &'a [f32]) {
        self.steps.push(Step::Rows(indices, rows));
    }

    /// Returns true if no other change may precede or follow this one.
    pub fn is_alone(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Rescale(_) | Step::Replace(_) | Step::Rows(..)))
    }

    /// Returns the first row and the bytes of each band, in order.
    pub fn bands(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (rows, width) = (self.rows, self.columns * self.dtype.size());
        let band = (BAND / width.max(1)).clamp(1, rows.max(1));
        (0..rows).step_by(band).map(move |first| (first, band.min(rows - first) * width))
    }

    /// Returns true if norms over all rows have to be measured before the first band changes.
    pub fn needs_norms(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Rescale(rescale) if rescale.needs_norms()))
    }

    /// Measures a band of the tensor's rows for the norms of W + ΔW; all bands together are the tensor.
    ///
    /// # Errors
    /// The band does not hold whole rows.
    pub fn measure(&mut self, band: &mut [u8], first_row: usize, workspace: &mut Workspace) -> Result<()> {
        let mut wide = std::mem::take(&mut workspace.wide);
        with_dtype!(self.dtype, E => widen::<E>(cast(band)?, &mut wide));
        for step in &mut self.steps {
            match step {
                Step::Rescale(rescale) => rescale.measure(&wide, self.columns),
                step => step.run(&mut wide, self.columns, first_row, &mut workspace.kernel)?,
            }
        }
        workspace.wide = wide;
        Ok(())
    }

    /// Changes the band of rows from `first_row` on.
    ///
    /// # Errors
    /// A result is not finite in the dtype.
    pub fn apply(
        &self,
        tensor: &str,
        first_row: usize,
        band: &mut [u8],
        workspace: &mut Workspace,
    ) -> Result<()> {
        with_dtype!(self.dtype, E => self.apply_to::<E>(tensor, first_row, band, workspace))
    }

    fn apply_to<E: Element>(
        &self,
        tensor: &str,
        first_row: usize,
        band: &mut [u8],
        workspace: &mut Workspace,
    ) -> Result<()> {
        let refused = |e: Error| Error::data(format!("{tensor}: {e}"));
        let rows = band.len() / (self.columns * self.dtype.size()).max(1);
        match &self.steps[..] {
            // The kernel rounds its sums to the dtype itself.
            [Step::Delta(op, theta)] => {
                let values: &mut [E] = cast(band).map_err(refused)?;
                merge(op, theta, values, self.columns, first_row, &mut workspace.kernel).map_err(refused)?;
            }
            steps if self.dtype == Dtype::F32 => {
                let values: &mut [f32] = cast(band).map_err(refused)?;
                for step in steps {
                    step.run(values, self.columns, first_row, &mut workspace.kernel).map_err(refused)?;
                }
            }
            steps => {
                let values: &mut [E] = cast(band).map_err(refused)?;
                let height = (WIDE / self.columns).max(1);
                let Workspace { kernel, wide } = workspace;
                for (i, values) in values.chunks_mut(height * self.columns).enumerate() {
                    widen(values, wide);
                    for step in steps {
                        step.run(wide, self.columns, first_row + i * height, kernel).map_err(refused)?;
                    }
                    let parts = values.par_chunks_mut(PART).zip(wide.par_chunks(PART));
                    parts.for_each(|(to, from)| {
                        to.iter_mut().zip(from).for_each(|(to, from)| *to = E::from_f32(*from));
                    });
                }
            }
        }
        let values: &[E] = cast(band).map_err(refused)?;
        if values.par_chunks(PART).all(|chunk| first_not_finite(chunk).is_none()) {
            return Ok(());
        }
        let what = match self.steps.last() {
            Some(Step::Replace(_) | Step::Rows(..)) => "the trained tensor",
            Some(Step::Rescale(_)) => "m·(W + ΔW)/‖W + ΔW‖",
            Some(Step::Add(..)) => "the sum",
            _ => "W + ΔW",
        };
        Err(Error::data(format!(
            "{tensor}: a value of {what} in rows {first_row}..{} is not finite in {}",
            first_row + rows,
            self.dtype
        )))
    }
}

impl Step<'_> {
    /// Changes whole rows, of which the first is the tensor's row `first_row`.
    fn run(&self, rows: &mut [f32], columns: usize, first_row: usize, kernel: &mut Vec<f32>) -> Result<()> {
        let from = first_row * columns;
        match self {
            Step::Delta(op, theta) => merge(op, theta, rows, columns, first_row, kernel)?,
            Step::Experts(height, deltas) => {
                let (mut row, mut left) = (first_row, rows);
                while !left.is_empty() {
                    let (expert, first) = (row / height, row % height);
                    let count = (height - first).min(left.len() / columns);
                    let (own, rest) = left.split_at_mut(count * columns);
                    let (op, theta) = &deltas[expert];
                    merge(op, theta, own, columns, first, kernel)?;
                    (row, left) = (row + count, rest);
                }
            }
            Step::Rescale(rescale) => rescale.run(rows, columns, first_row),
            Step::Add(values, scale) => {
                rows.iter_mut().zip(&values[from..]).for_each(|(to, value)| *to += scale * value);
            }
            Step::Replace(values) => {
                rows.iter_mut().zip(&values[from..]).for_each(|(to, value)| *to = *value);
            }
            Step::Rows(indices, values) => {
                for (index, row) in indices.iter().zip(values.chunks_exact(columns)) {
                    let at = index.checked_sub(first_row).map(|row| row * columns);
                    if let Some(to) = at.and_then(|at| rows.get_mut(at..at + columns)) {
                        to.copy_from_slice(row);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Returns a scale multiplied by a weight; the weight 1 keeps every bit.
fn weighted(scale: Scale, weight: f64) -> kron_core::Result<Scale> {
    if weight == 1.0 { Ok(scale) } else { Scale::new((f64::from(scale.get()) * weight) as f32) }
}

fn merge<E: Element>(
    op: &KronOp,
    theta: &Theta,
    values: &mut [E],
    columns: usize,
    first_row: usize,
    workspace: &mut Vec<f32>,
) -> Result<()> {
    let cpu = Cpu::new();
    let rows = values.len() / columns;
    let needed = cpu.workspace_len(op, Pass::Merge, rows);
    workspace.resize(needed.max(workspace.len()), 0.0);
    let w = ArrayViewMut2::from_shape((rows, columns), values).map_err(|e| Error::data(e.to_string()))?;
    let (theta, workspace) = (theta.as_slice(), &mut workspace[..]);
    Ok(cpu.merge(op, Merge { theta, w, first_row, accum: Accum::Add, workspace })?)
}

fn cast<T: bytemuck::Pod>(band: &mut [u8]) -> Result<&mut [T]> {
    bytemuck::try_cast_slice_mut(band).map_err(|e| Error::data(e.to_string()))
}

/// Writes values as float32 into `to`.
fn widen<E: Element>(values: &[E], to: &mut Vec<f32>) {
    to.resize(values.len(), 0.0);
    let parts = to.par_chunks_mut(PART).zip(values.par_chunks(PART));
    parts.for_each(|(to, from)| to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32()));
}
