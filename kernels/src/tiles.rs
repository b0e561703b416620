//! The kernels' tiles: the part of the problem that one block takes, and its shared memory.
//!
//! `cuda/` has the same sizes as constants. The emulator refuses a launch whose kernel takes
//! more shared memory than computed here.

/// Tokens, or rows m = (token, j), of a block in every kernel except `dy` at high rank.
pub const ROWS: usize = 64;
/// Largest number of tokens of a call that is planned for latency: two launches, and as many blocks as pay.
pub const SMALL_M: usize = 64;
/// Threads of the SIMT tile.
pub const SIMT_THREADS: u32 = 256;
/// Ranks with a tensor-core kernel.
pub const TENSOR_CORE_RANKS: [usize; 6] = [4, 8, 16, 32, 64, 128];
/// Shared memory that a block has on every supported GPU (sm_86, 89 and 120 have the least).
/// Plans, and with them the order of every sum, do not depend on the GPU.
pub const SHARED_LIMIT: usize = 99 << 10;

/// Terms of a sum in one step of the SIMT tile.
pub const DEPTH: usize = 32;

/// Returns the columns of the SIMT tile: a narrow tile wastes less at low rank.
pub const fn simt_cols(rank: usize) -> usize {
    if rank <= 16 { 16 } else { 64 }
}

/// Returns the bytes of the SIMT tile's two operands.
pub const fn simt_shared(cols: usize) -> usize {
    align(DEPTH * (ROWS + 1) * 4) + align(DEPTH * (cols + 1) * 4)
}

/// Returns the bytes of `up` on the SIMT tile: its operands, and scratch for the sums of U and T.
pub const fn simt_up_shared() -> usize {
    simt_shared(64) + 2 * REDUCE_SMEM
}

/// Bytes of scratch with which a block's threads add up a sum's parts: one float for each of 256.
const REDUCE_SMEM: usize = 4 * SIMT_THREADS as usize;

/// Returns the bytes of `merge`: the operands, and the tile of sums from which it stores.
pub const fn merge_shared() -> usize {
    simt_shared(64) + ROWS * 64 * 4
}

/// The backward pass at small m on the SIMT tile.
pub mod small_m {
    use super::{REDUCE_SMEM, ROWS, simt_shared};
    /// Columns of a tile: q in `dy`, k in `dx`.
    pub const COLS: usize = 32;
    /// Returns the bytes of `dy`: the operands, and V.
    pub const fn dy_shared() -> usize {
        simt_shared(COLS) + ROWS * COLS * 4
    }
    /// Returns the bytes of `dx`: the operands, and scratch for dT's sums.
    pub const fn dx_shared() -> usize {
        simt_shared(COLS) + REDUCE_SMEM
    }
}

/// Returns the rank rounded up to one 8-column fragment.
pub const fn padded(rank: usize) -> usize {
    if rank < 8 { 8 } else { rank }
}

/// Returns the bytes of one row of 16-bit elements of width `rank`, padded so that eight
/// consecutive rows lie in different banks.
const fn pitch(rank: usize) -> usize {
    if rank <= 8 { 16 } else { rank * 2 + 16 }
}

/// `down`: threads, columns of X and C in one stage, stages.
pub mod down {
    use super::{ROWS, padded};
    /// Four warps of 16 rows.
    pub const THREADS: u32 = 128;
    /// Columns of a stage.
    pub const COLS: usize = 64;
    /// Returns the stages of the cp.async pipeline: fewer where C's are large.
    pub const fn stages(rank: usize) -> usize {
        match rank {
            0..=32 => 4,
            33..=64 => 3,
            _ => 2,
        }
    }
    /// Returns the bytes of X in 16 bits, and of C in float32 with eight elements of padding in each row.
    pub const fn shared(rank: usize) -> usize {
        stages(rank) * (ROWS * COLS * 2 + padded(rank) * (COLS + 8) * 4)
    }
}

/// `up`: a warp has 32 columns of one block i of Y.
pub mod up {
    use super::{REDUCE_SMEM, ROWS, padded, pitch};
    /// Columns of a warp.
    pub const WARP_COLS: usize = 32;
    /// Warps of a block.
    pub const WARPS: usize = 8;
    /// Returns the bytes of U in 16 bits, and scratch for the sums of U and T.
    pub const fn shared(rank: usize) -> usize {
        ROWS * pitch(padded(rank)) + 2 * REDUCE_SMEM
    }
}

/// `dy`, the backward pass over dY.
pub mod dy {
    use super::{SHARED_LIMIT, align, padded, pitch};
    /// Eight warps.
    pub const THREADS: u32 = 256;
    /// Columns of dY in one stage.
    pub const COLS: usize = 128;
    /// Stages of the cp.async pipeline.
    pub const STAGES: usize = 3;
    /// Returns the tokens of a block's step.
    pub const fn rows(rank: usize) -> usize {
        if rank <= 32 { 64 } else { 32 }
    }
    /// Returns the bytes of dY's stages, U, V, dT's accumulators, and dA's for each warp.
    pub const fn shared(rank: usize, a_in: usize, rows_per_group: usize) -> usize {
        let rows = rows(rank);
        STAGES * rows * COLS * 2
            + align(rows * pitch(padded(rank)))
            + align(rows * padded(rank) * 4)
            + align(rows * a_in * rank * 4)
            + align(8 * rows_per_group * a_in * 4)
    }
    /// Returns the most rows of A in a group whose shared memory fits; 0 if none does.
    pub const fn max_group(rank: usize, a_in: usize) -> usize {
        SHARED_LIMIT.saturating_sub(shared(rank, a_in, 0)) / (8 * a_in * 4)
    }
}

/// `dx`, the backward pass over X.
pub mod dx {
    use super::{REDUCE_SMEM, ROWS, padded, pitch};
    /// Eight warps.
    pub const THREADS: u32 = 256;
    /// Columns of X in one stage.
    pub const COLS: usize = 128;
    /// Stages of the cp.async pipeline.
    pub const STAGES: usize = 3;
    /// Returns the bytes of X's stages, dT in 16 bits, and scratch for dT's sums.
    pub const fn shared(rank: usize) -> usize {
        STAGES * ROWS * COLS * 2 + ROWS * pitch(padded(rank)) + REDUCE_SMEM
    }
}

const fn align(bytes: usize) -> usize {
    bytes.div_ceil(16) * 16
}
