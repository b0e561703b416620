//! The kernels' tiles: how much of the problem one block takes, and the shared
//! memory that costs. The same numbers stand as constants in `cuda/*.cu`; the
//! emulator refuses a launch whose kernel takes more than this file says.

/// Tokens, or rows m = (token, j), of a block; every kernel but `dy` at high rank.
pub const ROWS: usize = 64;
/// Tokens up to which a call is cut for latency: two launches, and as many blocks as pay.
pub const FEW_ROWS: usize = 64;
/// Threads of the general tile.
pub const GENERAL_THREADS: u32 = 256;
/// Ranks with a tensor-core kernel.
pub const FAST_RANKS: [usize; 6] = [4, 8, 16, 32, 64, 128];
/// Shared memory that every supported GPU grants a block (sm_86, 89, 120), so
/// that plans, and with them the order of every sum, do not depend on the GPU.
pub const SHARED_LIMIT: usize = 99 << 10;

/// Terms of a sum in one step of the general tile.
pub const DEPTH: usize = 32;

/// Columns of the general tile: narrow ones waste less at low rank.
pub const fn general_cols(rank: usize) -> usize {
    if rank <= 16 { 16 } else { 64 }
}

/// Bytes of the general tile's two operands.
pub const fn general_shared(cols: usize) -> usize {
    align(DEPTH * (ROWS + 1) * 4) + align(DEPTH * (cols + 1) * 4)
}

/// Bytes of `up` on the general tile: its operands, and room for its sums and T's.
pub const fn general_up_shared() -> usize {
    general_shared(64) + 2 * ROOM
}

/// Bytes in which a block's threads add up a sum's parts: a number each of 256.
const ROOM: usize = 4 * GENERAL_THREADS as usize;

/// Bytes of `merge`: the general tile's, and the tile of sums that is stored from.
pub const fn merge_shared() -> usize {
    general_shared(64) + ROWS * 64 * 4
}

/// The backward pass of few tokens on the general tile.
pub mod few {
    use super::{ROWS, general_shared};
    /// Columns of a tile: q in `dy`, k in `dx`.
    pub const COLS: usize = 32;
    /// `dy`: the general tile's operands, and V.
    pub const fn dy_shared() -> usize {
        general_shared(COLS) + ROWS * COLS * 4
    }
    /// `dx`: the general tile's operands, and room for dT's sums.
    pub const fn dx_shared() -> usize {
        general_shared(COLS) + super::ROOM
    }
}

/// `rank` as the tensor cores see it: at least one 8-column fragment.
pub const fn padded(rank: usize) -> usize {
    if rank < 8 { 8 } else { rank }
}

/// Bytes of one row of 16-bit numbers of width `rank`, such that eight rows
/// that follow one another lie in different banks.
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
    /// Stages of the cp.async pipeline: fewer where C's are large.
    pub const fn stages(rank: usize) -> usize {
        match rank {
            0..=32 => 4,
            33..=64 => 3,
            _ => 2,
        }
    }
    /// X in 16-bit numbers, C in float32 with eight numbers of padding a row.
    pub const fn shared(rank: usize) -> usize {
        stages(rank) * (ROWS * COLS * 2 + padded(rank) * (COLS + 8) * 4)
    }
}

/// `up`: a warp has 32 columns of one block i.
pub mod up {
    use super::{ROOM, ROWS, padded, pitch};
    /// Columns of a warp.
    pub const WARP_COLS: usize = 32;
    /// Warps of a block.
    pub const WARPS: usize = 8;
    /// U in 16-bit numbers, and room for its sums and T's.
    pub const fn shared(rank: usize) -> usize {
        ROWS * pitch(padded(rank)) + 2 * ROOM
    }
}

/// `dy`, the backward pass over dY.
pub mod dy {
    use super::{align, padded, pitch};
    /// Eight warps.
    pub const THREADS: u32 = 256;
    /// Columns of dY in one stage.
    pub const COLS: usize = 128;
    /// Stages of the cp.async pipeline.
    pub const STAGES: usize = 3;
    /// Tokens of a block's step.
    pub const fn rows(rank: usize) -> usize {
        if rank <= 32 { 64 } else { 32 }
    }
    /// dY's stages, U, V, dT's accumulators and dA's, a warp each.
    pub const fn shared(rank: usize, a_in: usize, rows_per_group: usize) -> usize {
        let rows = rows(rank);
        STAGES * rows * COLS * 2
            + align(rows * pitch(padded(rank)))
            + align(rows * padded(rank) * 4)
            + align(rows * a_in * rank * 4)
            + align(8 * rows_per_group * a_in * 4)
    }
}

/// `dx`, the backward pass over X.
pub mod dx {
    use super::{ROOM, ROWS, padded, pitch};
    /// Eight warps.
    pub const THREADS: u32 = 256;
    /// Columns of X in one stage.
    pub const COLS: usize = 128;
    /// Stages of the cp.async pipeline.
    pub const STAGES: usize = 3;
    /// X's stages and dT in 16-bit numbers, and room for dT's sums.
    pub const fn shared(rank: usize) -> usize {
        STAGES * ROWS * COLS * 2 + ROWS * pitch(padded(rank)) + ROOM
    }
}

const fn align(bytes: usize) -> usize {
    bytes.div_ceil(16) * 16
}
