//! [`Plan`]: which kernels a problem runs, with which grids and which scratch.
//!
//! A pure function of the [`Problem`]; it asks no device, so equal problems
//! run equal sums in an equal order on every GPU.

use std::fmt;

use arrayvec::ArrayVec;

use crate::draft::Draft;
use crate::{Arch, Name, Problem};
use kron_core::{Dtype, KronShape, Pass, Result};

/// Blocks that fill the largest chip twice: what splits aim at.
pub const BLOCKS: usize = 264;

/// One kernel launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The kernel's name.
    pub kernel: Name,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    /// Column tiles: the fast index of the grid.
    pub col_tiles: u32,
    /// Columns of a tile; 0 where there are no column tiles.
    pub cols: u32,
    /// Chunks of a sum over tokens.
    pub row_chunks: u32,
    /// Rows of a chunk.
    pub chunk_rows: u64,
}

/// Where a sum's parts lie in the workspace: offset in numbers, and how many parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// First number.
    pub offset: usize,
    /// Parts; 0 when the problem needs none, or a kernel adds the sum to the gradient itself.
    pub count: usize,
}

/// The launches of one call, in order, and the scratch they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The launches; none when there is nothing to compute.
    pub steps: ArrayVec<Step, 8>,
    /// Parts of T; one part means that `down` writes T itself.
    pub t: Parts,
    /// Columns of one slice of c_in.
    pub t_slice: usize,
    /// V, on the general tile.
    pub v: Parts,
    /// Parts of dT.
    pub dt: Parts,
    /// Parts of dA.
    pub da: Parts,
    /// Parts of dB.
    pub db: Parts,
    /// Parts of dC.
    pub dc: Parts,
    /// Groups of A's rows in `dy`, and rows of a group.
    pub i_groups: usize,
    /// Rows of A in one group.
    pub i_group: usize,
    /// Float32 numbers of scratch.
    pub workspace: usize,
    /// Bytes that any implementation has to move: operands once.
    pub floor_bytes: u128,
    /// Those and the round trips of the scratch, were none of it cached.
    pub bytes: u128,
}

impl Plan {
    /// Time in µs below which `arch` cannot finish: floor bytes over its copy
    /// rate. A prediction, not a measurement.
    pub fn floor_us(&self, arch: &Arch) -> f64 {
        self.floor_bytes as f64 / arch.bytes_per_us
    }

    /// The plan with the floor's time on `arch`.
    pub fn display(&self, arch: &Arch) -> impl fmt::Display {
        let (floor, us) = (self.floor_us(arch), |bytes: u128| bytes as f64 / arch.bytes_per_us);
        let scratch = us(self.bytes);
        fmt::from_fn(move |out| {
            writeln!(out, "{self}{}: floor {floor:.2} µs, with scratch {scratch:.2} µs", arch.name)
        })
    }

    /// The plan of a problem.
    ///
    /// # Errors
    /// More blocks than a grid can have, with the numbers.
    pub fn new(problem: &Problem) -> Result<Self> {
        Self::aimed_at(BLOCKS, problem)
    }

    /// The plan that aims at another number of blocks: with few, a block's
    /// walk is long even in a small problem, as tests want it.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn aimed_at(blocks: usize, problem: &Problem) -> Result<Self> {
        Draft::new(problem, blocks).plan()
    }
}

/// Scratch, in numbers, that covers every dtype and alignment of a call.
///
/// # Errors
/// As [`Plan::new`].
pub fn workspace_len(shape: KronShape, pass: Pass, rows: usize) -> Result<usize> {
    let mut most = 0;
    for (dtype, aligned) in [(Dtype::F32, false), (Dtype::Bf16, true)] {
        let plan = Plan::new(&Problem { shape, dtype, pass, rows, accumulate: true, aligned })?;
        most = most.max(plan.workspace);
    }
    Ok(most)
}

impl fmt::Display for Plan {
    /// One line a launch, then how sums are cut, then scratch and bytes.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for s in &self.steps {
            write!(out, "{:<22} grid {:>6} block {:>3} shared {:>6}, ", s.kernel, s.grid, s.block, s.shared)?;
            if s.cols > 0 {
                write!(out, "{} column tiles of {}, ", s.col_tiles, s.cols)?;
            }
            writeln!(out, "{} chunks of {} rows", s.row_chunks, s.chunk_rows)?;
        }
        writeln!(
            out,
            "parts: T {} of {} columns, dT {}, dA {}, dB {}, dC {}; {} groups of {} rows of A",
            self.t.count,
            self.t_slice,
            self.dt.count,
            self.da.count,
            self.db.count,
            self.dc.count,
            self.i_groups,
            self.i_group
        )?;
        writeln!(
            out,
            "scratch {} numbers; floor {} bytes, with scratch {}",
            self.workspace, self.floor_bytes, self.bytes
        )
    }
}
