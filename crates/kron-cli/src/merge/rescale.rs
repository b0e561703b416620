//! DoRA: W' = m·(W + ΔW)/‖W + ΔW‖, row by row, or column by column with norms that were measured before.

use kron_adapter::extras::{Magnitude, Norm};
use rayon::prelude::*;

/// Sums that are kept apart, so that they are computed side by side.
const LANES: usize = 8;

/// Columns that one thread measures.
const COLUMNS: usize = 256;

/// The magnitude of one tensor, in its orientation.
pub struct Rescale<'a> {
    magnitude: &'a Magnitude,
    /// Sums of squares of the columns, where the norms are of columns.
    columns: Option<Vec<f64>>,
}

impl<'a> Rescale<'a> {
    /// Takes the magnitude of a tensor, stored as d_out × d_in or transposed.
    pub fn new(magnitude: &'a Magnitude, is_transposed: bool) -> Self {
        let of_rows = (magnitude.norm() == Norm::OfOutputs) != is_transposed;
        Self { magnitude, columns: (!of_rows).then(Vec::new) }
    }

    /// Returns true if all rows have to be measured before the first changes.
    pub const fn needs_norms(&self) -> bool {
        self.columns.is_some()
    }

    /// Adds the squares of some rows of W + ΔW.
    pub fn measure(&mut self, rows: &[f32], columns: usize) {
        let Some(sums) = &mut self.columns else { return };
        sums.resize(columns, 0.0);
        // Every sum has one writer, and one order whatever the number of threads.
        sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(part, sums)| {
            for row in rows.chunks_exact(columns) {
                let row = &row[part * COLUMNS..][..sums.len()];
                sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
            }
        });
    }

    /// Rescales some rows of W + ΔW, of which the first is the tensor's row `first_row`.
    pub fn run(&self, rows: &mut [f32], columns: usize, first_row: usize) {
        match &self.columns {
            None => rows.par_chunks_mut(columns).enumerate().for_each(|(i, row)| {
                let factor = self.magnitude.factor(first_row + i, sum_of_squares(row));
                row.iter_mut().for_each(|v| *v = (f64::from(*v) * factor) as f32);
            }),
            Some(sums) => {
                let factors: Vec<f64> =
                    sums.iter().enumerate().map(|(j, sum)| self.magnitude.factor(j, *sum)).collect();
                rows.par_chunks_mut(columns).for_each(|row| {
                    let values = row.iter_mut().zip(&factors);
                    values.for_each(|(v, factor)| *v = (f64::from(*v) * factor) as f32);
                });
            }
        }
    }
}

fn sum_of_squares(row: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest: f64 = chunks.remainder().iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
    }
    sums.iter().sum::<f64>() + rest
}
