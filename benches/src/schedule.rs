//! The schedule of a run: built once from the command line, and valid from then on.

use std::path::PathBuf;
use std::sync::Arc;

use kron_core::{Dtype, Element, KronShape, Theta};
use ndarray::Array2;

use crate::data::{self, Set};
use crate::engines::Kind;
use crate::models::{Layer, Model};
use crate::problem::{LayerTask, TimedPasses};
use crate::record::Record;

/// A whole run.
#[derive(Debug)]
pub struct Schedule {
    /// Layers and dtypes, in the order of the report.
    pub groups: Vec<Group>,
    /// Passes of the report.
    pub passes: Vec<TimedPasses>,
    /// Rank of Kron-LoRA, and of LoRA at equal rank.
    pub rank: usize,
    /// alpha of alpha / r.
    pub alpha: f32,
    /// The CUDA device to measure; `None` is the CPU.
    pub device: Option<usize>,
    /// True if only that everything runs counts: a device is not measured as thoroughly then.
    pub smoke: bool,
    /// Threads to use.
    pub threads: usize,
    /// Seconds to aim at.
    pub seconds: f64,
    /// The report's folder.
    pub out: PathBuf,
    /// The file for the Markdown table.
    pub markdown: Option<PathBuf>,
    /// The earlier run to compare with.
    pub baseline: Option<Record>,
}

impl Schedule {
    /// Returns true if backward is timed too.
    pub fn backward(&self) -> bool {
        self.passes.contains(&TimedPasses::Both)
    }

    /// Returns every dtype once.
    pub fn dtypes(&self) -> Vec<Dtype> {
        let mut dtypes: Vec<Dtype> = self.groups.iter().map(|g| g.dtype).collect();
        dtypes.sort_by_key(|d| d.name());
        dtypes.dedup();
        dtypes
    }
}

/// One layer in one dtype, which share a weight; each number of rows is a cell.
#[derive(Debug)]
pub struct Group {
    /// The model of the layer.
    pub model: &'static Model,
    /// The layer.
    pub layer: &'static Layer,
    /// The dtype of the activations and the weight.
    pub dtype: Dtype,
    /// Tokens of each cell.
    pub rows: Vec<usize>,
    /// The engines to compare.
    pub entries: Vec<Entry>,
}

/// One engine on one layer.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The engine.
    pub kind: Kind,
    /// Its problem.
    pub problem: LayerTask,
}

/// Sizes of an adapter's factors.
#[derive(Clone, Copy, Debug, Default)]
pub struct Factors {
    /// Rank of the inner factor; its width if it is full.
    pub rank: usize,
    /// Rows of A.
    pub a_out: usize,
    /// Columns of A.
    pub a_in: usize,
}

impl Entry {
    /// Returns the sizes of the adapter's factors: zeros for the base layer.
    pub fn factors(&self) -> Factors {
        let sizes = |s: KronShape| Factors { rank: s.width(), a_out: s.a_out(), a_in: s.a_in() };
        self.problem.shape().map(sizes).unwrap_or_default()
    }

    /// Returns the engine's name with its rank.
    pub fn label(&self) -> String {
        match self.factors().rank {
            0 => self.kind.name().into(),
            rank => format!("{} r{rank}", self.kind.name()),
        }
    }

    /// Returns θ; `None` for the base layer.
    pub fn theta(&self) -> Option<Theta> {
        self.problem.shape().map(data::theta)
    }
}

impl Group {
    /// Returns the name of a cell, for messages.
    pub fn cell_name(&self, rows: usize) -> String {
        format!("{} {} {} × {rows}", self.model.name, self.layer.name, self.dtype)
    }

    /// Returns the frozen weight if any engine needs it.
    pub fn weight<E: Element>(&self) -> Option<Arc<Array2<E>>> {
        let needed = self.entries.iter().any(|e| e.kind.needs_weight());
        needed.then(|| Arc::new(data::weight(self.layer.dims())))
    }

    /// Draws a set of a cell.
    pub fn set<E: Element>(&self, rows: usize, seed: u64) -> Set<E> {
        let t_len = self.entries.iter().filter_map(|e| e.problem.op()).map(|op| op.t_len(rows)).max();
        Set::random(rows, self.layer.dims(), t_len.unwrap_or(0), seed)
    }

    /// Returns an estimate of the bytes of a cell: its sets, two copies to check on, weights and the
    /// engines' buffers.
    pub fn bytes(&self, rows: usize) -> u128 {
        let (n, d_out, d_in) = (rows as u128, self.layer.d_out as u128, self.layer.d_in as u128);
        let rank = self.entries.iter().map(|e| e.factors().rank).max().unwrap_or(0) as u128;
        let factor = self.entries.iter().map(|e| e.factors().a_out.max(e.factors().a_in)).max();
        let factor = factor.unwrap_or(0) as u128;
        let set = n * (2 * (d_out + d_in) * self.dtype.size() as u128 + 4 * factor * rank);
        let buffers = 4 * n * (4 * (d_out + d_in) + 6 * factor * rank);
        let parameters = 4 * 64 * (rank * (d_out + d_in) + factor * factor);
        5 * set + buffers + parameters + 16 * d_out * d_in + (256 << 20)
    }
}
