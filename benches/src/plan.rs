//! What a run will do: made once from the command line, then never questioned.

use std::path::PathBuf;

use kron_core::Dtype;

use crate::engines::Kind;
use crate::models::{Layer, Model};
use crate::problem::{Pass, Problem};
use crate::record::Record;

/// A whole run.
#[derive(Debug)]
pub struct Plan {
    /// Layers and dtypes, in the order of the report.
    pub groups: Vec<Group>,
    /// Passes of the report.
    pub passes: Vec<Pass>,
    /// Rank of Kron-LoRA, and of LoRA at equal rank.
    pub rank: usize,
    /// alpha of alpha / r.
    pub alpha: f32,
    /// The CUDA device to measure; `None` is the CPU.
    pub device: Option<usize>,
    /// Threads to use.
    pub threads: usize,
    /// Seconds to aim at.
    pub seconds: f64,
    /// The report's folder.
    pub out: PathBuf,
    /// Where the Markdown table goes.
    pub markdown: Option<PathBuf>,
    /// What to compare with.
    pub baseline: Option<Record>,
}

/// One layer in one dtype, which share a weight; a cell for each number of rows.
#[derive(Debug)]
pub struct Group {
    /// Whose layer.
    pub model: &'static Model,
    /// The layer.
    pub layer: &'static Layer,
    /// Of the activations and the weight.
    pub dtype: Dtype,
    /// Tokens of each cell.
    pub rows: Vec<usize>,
    /// What competes.
    pub entries: Vec<Entry>,
}

/// One engine on one layer.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The engine.
    pub kind: Kind,
    /// Its task.
    pub problem: Problem,
}

impl Entry {
    /// (rank, a_out, a_in): zeros for the base layer.
    pub fn factors(&self) -> (usize, usize, usize) {
        self.problem.shape().map_or((0, 0, 0), |s| (s.width(), s.a_out(), s.a_in()))
    }

    /// The engine's name with its rank.
    pub fn label(&self) -> String {
        match self.factors().0 {
            0 => self.kind.name().into(),
            rank => format!("{} r{rank}", self.kind.name()),
        }
    }
}

impl Group {
    /// Numbers of T of the engine that keeps the most.
    pub fn t_len(&self, rows: usize) -> usize {
        self.entries.iter().filter_map(|e| e.problem.op()).map(|op| op.t_len(rows)).max().unwrap_or(0)
    }

    /// Bytes that a cell takes, roughly: its sets, two copies to check on, weights and the engines' buffers.
    pub fn bytes(&self, rows: usize) -> u128 {
        let (n, d_out, d_in) = (rows as u128, self.layer.d_out as u128, self.layer.d_in as u128);
        let rank = self.entries.iter().map(|e| e.factors().0).max().unwrap_or(0) as u128;
        let factor = self.entries.iter().map(|e| e.factors().1.max(e.factors().2)).max().unwrap_or(0) as u128;
        let set = n * (2 * (d_out + d_in) * self.dtype.size() as u128 + 4 * factor * rank);
        let buffers = 4 * n * (4 * (d_out + d_in) + 6 * factor * rank);
        let parameters = 4 * 64 * (rank * (d_out + d_in) + factor * factor);
        5 * set + buffers + parameters + 16 * d_out * d_in + (256 << 20)
    }
}
