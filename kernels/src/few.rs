//! How calls of few rows are cut: a model in clock cycles, whose constants are estimates.
//!
//! More parts of a sum shorten the walk of the blocks that make them and lengthen the
//! sums of the blocks that add them up; narrower column tiles give each block less of
//! its own to load, but every one of them adds up the parts for itself.

use crate::tiles::DEPTH;

/// Numbers that one block takes from L2 in a cycle.
const LOADED: usize = 16;
/// Numbers that all blocks together take from L2 in a cycle.
const CHIP_LOADED: usize = 1000;
/// Of a part: L2's latency, shared by sixteen loads in flight.
const LATENCY: usize = 15;

/// Parts of dT on the general tile: a block of `dy` makes a step for every 32 columns of dY in its part.
pub(crate) fn general_parts(columns: usize, numbers: usize) -> usize {
    const STEP: usize = 2048; // 64 × 32 × 32 products of 256 threads, and the loads before them
    cheapest(STEP * columns.div_ceil(DEPTH), numbers, 1)
}

/// Parts on tensor cores, where `steps` are shared out among them and a block adds up `numbers` of
/// each, which take part in `sums` sums.
pub(crate) fn parts(rank: usize, steps: usize, numbers: usize, sums: usize) -> usize {
    let lanes = 1 << (256 / sums.max(1)).clamp(1, 32).ilog2(); // as `each_sum` has them
    cheapest(step(rank) * steps, numbers, lanes)
}

/// Column tiles on tensor cores, where `steps` and the load of `own` numbers are shared out among
/// them, and each adds up `loads` numbers of parts.
pub(crate) fn tiles(rank: usize, steps: usize, own: usize, loads: usize) -> usize {
    let own = step(rank) * steps + own / LOADED;
    (own * CHIP_LOADED / loads.max(1)).isqrt().max(1)
}

/// A step of a tensor-core kernel: a round trip to memory, and products that grow with the rank.
const fn step(rank: usize) -> usize {
    1000 + 8 * rank
}

/// The number of parts at which `work` / parts and the parts' own costs, LATENCY / lanes +
/// numbers / LOADED each, have the least sum.
fn cheapest(work: usize, numbers: usize, lanes: usize) -> usize {
    (work * lanes * LOADED / (LATENCY * LOADED + numbers * lanes)).isqrt().max(1)
}
