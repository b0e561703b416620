//! The launches of a call, in order, and the scratch they share.

use std::fmt;

use arrayvec::ArrayVec;

use crate::{Arch, Name, tiles};

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
    /// Column tiles: the fastest index of the grid.
    pub col_tiles: u32,
    /// Columns of a tile; 0 where there are no column tiles.
    pub cols: u32,
    /// Chunks of a sum over tokens.
    pub row_chunks: u32,
    /// Rows of a chunk; 0 where tiles of rows are divided evenly.
    pub chunk_rows: u64,
    /// Tiles of rows that the chunks divide evenly; 0 where chunks have a number of rows.
    pub tiles: u32,
    /// Blocks that a multiprocessor of sm_90a holds at a time.
    pub resident: u32,
    /// True if the kernel may start while the one before it runs, from sm_90 on. It then waits for its end.
    pub early: bool,
}

impl Step {
    /// Returns the rounds of blocks that an H200 needs, with `resident` blocks on each of its
    /// 132 multiprocessors in a round.
    pub fn waves(&self) -> f64 {
        f64::from(self.grid) / f64::from(self.resident * MULTIPROCESSORS)
    }
}

/// Multiprocessors of an H200, the largest GPU with a table of resident blocks.
pub const MULTIPROCESSORS: u32 = 132;

/// Position of a sum's parts in the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Offset of the first part, in elements.
    pub offset: usize,
    /// Number of parts; 0 if the problem needs none, or a kernel adds the sum to the gradient directly.
    pub count: usize,
}

/// The launches of one call, in order, and the scratch they share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchPlan {
    /// The launches; empty if there is nothing to compute.
    pub steps: ArrayVec<Step, 8>,
    /// Parts of T; with one part `down` writes T directly.
    pub t: Parts,
    /// Columns of one slice of c_in.
    pub t_slice: usize,
    /// Number of slices, the first ones, that have a stage of `down` more.
    pub t_longer: usize,
    /// V, on the SIMT tile.
    pub v: Parts,
    /// Parts of dT.
    pub dt: Parts,
    /// Parts of dA.
    pub da: Parts,
    /// Parts of dB.
    pub db: Parts,
    /// Parts of dC.
    pub dc: Parts,
    /// U, in a call over segments.
    pub u: Parts,
    /// Numbers of the sorted rows, in a call over segments.
    pub order: Parts,
    /// Tiles of sorted rows, in a call over segments.
    pub segments: Parts,
    /// Most rows of such a tile; 0 in other calls.
    pub tile_rows: usize,
    /// Groups of A's rows in `dy`.
    pub a_row_groups: usize,
    /// Rows of A in one group.
    pub rows_per_group: usize,
    /// Scratch, in float32 elements.
    pub workspace: usize,
    /// Bytes that any implementation has to move: every operand once.
    pub floor_bytes: u128,
    /// `floor_bytes` and one round trip of the whole scratch, as if no cache held it.
    pub bytes: u128,
}

impl LaunchPlan {
    /// Lower bound of the time on `arch` in µs: floor bytes over its copy rate.
    /// A prediction, not a measurement.
    pub fn floor_us(&self, arch: &Arch) -> f64 {
        self.floor_bytes as f64 / arch.bytes_per_us
    }

    /// Returns a printable plan with its lower bound on `arch`.
    pub fn display(&self, arch: &Arch) -> impl fmt::Display {
        let (floor, us) = (self.floor_us(arch), |bytes: u128| bytes as f64 / arch.bytes_per_us);
        let scratch = us(self.bytes);
        fmt::from_fn(move |out| {
            writeln!(out, "{self}{}: floor {floor:.2} µs, with scratch {scratch:.2} µs", arch.name)
        })
    }
}

impl fmt::Display for LaunchPlan {
    /// Prints one line for each launch, then the parts of sums, then scratch and bytes.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for s in &self.steps {
            write!(out, "{:<22} grid {:>6} block {:>3} shared {:>6}, ", s.kernel, s.grid, s.block, s.shared)?;
            if s.cols > 0 {
                write!(out, "{} column tiles of {}, ", s.col_tiles, s.cols)?;
            }
            match s.tiles {
                0 => write!(out, "{} chunks of {} rows", s.row_chunks, s.chunk_rows)?,
                tiles => write!(out, "{tiles} tiles in {} chunks", s.row_chunks)?,
            }
            let early = if s.early { ", starts early" } else { "" };
            writeln!(out, ", {} resident, {:.2} waves{early}", s.resident, s.waves())?;
        }
        if self.tile_rows > 0 {
            writeln!(out, "{} tiles of at most {} rows of one adapter", self.segments.count, self.tile_rows)?;
        }
        write!(out, "parts: T {} of {} columns", self.t.count, self.t_slice)?;
        if self.t_longer > 0 {
            write!(out, " ({} with {} more)", self.t_longer, tiles::down::COLS)?;
        }
        writeln!(
            out,
            ", dT {}, dA {}, dB {}, dC {}; {} groups of {} rows of A",
            self.dt.count,
            self.da.count,
            self.db.count,
            self.dc.count,
            self.a_row_groups,
            self.rows_per_group
        )?;
        writeln!(
            out,
            "scratch {} elements; floor {} bytes, with scratch {}",
            self.workspace, self.floor_bytes, self.bytes
        )
    }
}
