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

/// The kernels between the stacked adapter of a joined group and its terms.
pub mod group {
    /// Threads of a block.
    pub const THREADS: u32 = 256;
    /// Rows m of a block.
    pub const ROWS: usize = 128;
    /// Places of the kernels' list of terms.
    pub const STACKED: usize = 8;
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
    /// Returns the blocks that a multiprocessor of sm_90a holds.
    pub const fn resident(rank: usize) -> usize {
        match rank {
            0..=16 => 4,
            17..=32 => 3,
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
    /// Returns the blocks of `warps` warps that a multiprocessor of sm_90a holds.
    pub const fn resident(rank: usize, warps: usize) -> usize {
        let of_eight = if rank <= 64 { 2 } else { 1 };
        of_eight * (WARPS / warps)
    }
    /// Returns the bytes of U in 16 bits and, at small m, scratch for the sums of U and T.
    pub const fn shared(rank: usize, small_m: bool) -> usize {
        ROWS * pitch(padded(rank)) + if small_m { 2 * REDUCE_SMEM } else { 0 }
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
    /// Threads that compute V; each has its own elements of dT.
    const V_THREADS: usize = 128;
    /// Returns the tokens of a block's step.
    pub const fn rows(rank: usize) -> usize {
        if rank <= 32 { 64 } else { 32 }
    }
    /// Returns the blocks that a multiprocessor of sm_90a holds.
    pub const fn resident(rank: usize) -> usize {
        if rank <= 32 { 2 } else { 1 }
    }
    /// Returns the columns of A of the kernel that keeps dT in registers and T in shared memory; 0 for the
    /// kernel of any number of columns. With two columns every group has at least two rows of A.
    pub const fn columns(rank: usize, a_out: usize, a_in: usize, groups: usize) -> usize {
        match a_in {
            1 if narrow(rank, 1) => 1,
            2 if narrow(rank, 2) && a_out >= 2 * groups => 2,
            _ => 0,
        }
    }
    /// Returns a warp's instructions in a step of the kernel for `columns` columns of A, near those that
    /// docs/KERNELS.md counts in the machine code.
    pub const fn instructions(rank: usize, columns: usize) -> usize {
        match columns {
            1 => 170 + 3 * rank,
            2 => 190 + 4 * rank,
            _ if rank <= 32 => 200 + 6 * rank,
            _ => 150 + 4 * rank, // half as many tokens
        }
    }
    /// True if a low rank leaves room for T and for at least eight rows of A.
    const fn narrow(rank: usize, a_in: usize) -> bool {
        rank <= 32 && a_in <= 2 && shared(rank, a_in, 8, a_in) <= SHARED_LIMIT
    }
    /// Returns the bytes of dY's stages, U, B, the group's rows of A and sums of dA, and some tiles of T
    /// or dT's sums: of the kernel for `columns` columns of A.
    pub const fn shared(rank: usize, a_in: usize, rows_per_group: usize, columns: usize) -> usize {
        let (rows, pairs) = (rows(rank), rows_per_group * a_in);
        let fragments = padded(rank) / 8 * (rows / 16) / 4;
        let (lanes, last) = match columns {
            0 => (4, a_in * fragments * V_THREADS * 16),
            1 => (32, 3 * rows * rank * 4),
            _ => (32, 2 * 2 * rows * rank * 4),
        };
        STAGES * rows * COLS * 2
            + (rows + COLS) * pitch(padded(rank))
            + align(pairs * 4)
            + align(pairs * 4 * lanes)
            + last
    }
    /// Returns the most rows of A in a group whose shared memory fits, whichever kernel runs; 0 if none does.
    pub const fn max_group(rank: usize, a_in: usize) -> usize {
        // The kernel of fewer columns takes the most. A's rows and dA's sums start on 16-byte boundaries each.
        let (columns, pair) = if narrow(rank, a_in) { (a_in, 33) } else { (0, 5) };
        SHARED_LIMIT.saturating_sub(shared(rank, a_in, 0, columns) + 32) / (pair * 4 * a_in)
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
    /// Returns the blocks that a multiprocessor of sm_90a holds.
    pub const fn resident(rank: usize) -> usize {
        if rank <= 32 { 2 } else { 1 }
    }
    /// Returns the tiles of whole tokens, at most 64 rows m each. No shape that `dy` takes has a token of more.
    pub const fn tiles(rows: usize, a_in: usize) -> usize {
        rows.div_ceil(if a_in < ROWS { ROWS / a_in } else { 1 })
    }
    /// Returns the bytes of X's stages, dT of two tiles in 16 bits and, at small m, scratch for dT's sums.
    pub const fn shared(rank: usize, small_m: bool) -> usize {
        STAGES * ROWS * COLS * 2 + 2 * ROWS * pitch(padded(rank)) + if small_m { REDUCE_SMEM } else { 0 }
    }
}

/// `reduce`: elements of a block, each with several lanes.
pub mod reduce {
    /// Elements of a block at a time.
    pub const WIDTH: usize = 32;
    /// Blocks that a multiprocessor of sm_90a holds.
    pub const RESIDENT: usize = 4;
    /// Bytes of the lanes' sums.
    pub const SHARED: usize = 4 * super::SIMT_THREADS as usize;
}

/// The kernels over segments.
pub mod segments {
    use super::SIMT_THREADS;
    /// Eight warps.
    pub const THREADS: u32 = SIMT_THREADS;
    /// Warps of a block.
    pub const WARPS: usize = THREADS as usize / 32;
    /// Columns of a warp.
    pub const COLS: usize = 256;
    /// Ranks of a warp.
    pub const RANKS: usize = 8;
    /// Most rows of a tile.
    pub const ROWS: usize = 16;
    /// Elements of A for each warp of `grad` that computes dA.
    pub const A_PER_WARP: usize = 16;
    /// Elements of a tile's entry in the list of tiles.
    pub const ENTRY: usize = 4;
    /// Blocks that a multiprocessor of sm_90a holds.
    pub const RESIDENT: usize = 2;
    /// Bytes of `sort`: four counts of each warp.
    pub const SORT_SHARED: usize = 16 * WARPS;
    /// Bytes of `down` and `dy`: the sums of each warp's 32 rows.
    pub const DOT_SHARED: usize = 4 * WARPS * 32 * RANKS;
    /// Bytes of `grad`: the sums of half of the warps.
    pub const GRAD_SHARED: usize = 4 * WARPS / 2 * COLS * RANKS;
    /// Returns the warps of a block that share a row's columns: the least power of two for all, at most all warps.
    pub const fn column_ways(width: usize) -> usize {
        let mut ways = 1;
        while ways < WARPS && ways * COLS < width {
            ways *= 2;
        }
        ways
    }
    /// Returns the blocks that divide a row's columns.
    pub const fn column_blocks(width: usize) -> usize {
        width.div_ceil(COLS * column_ways(width))
    }
}

/// Blocks of the SIMT tile that a multiprocessor of sm_90a holds.
pub const SIMT_RESIDENT: usize = 2;

const fn align(bytes: usize) -> usize {
    bytes.div_ceil(16) * 16
}
