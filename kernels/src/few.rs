//! How calls of few rows are cut: a model in clock cycles, whose constants are estimates.
//!
//! More parts of a sum shorten the walk of the blocks that make them and lengthen the
//! sums of the blocks that add them up; narrower column tiles give each block less of
//! its own to load, but every one of them adds up the parts for itself.

use crate::tiles::{DEPTH, GENERAL_THREADS};

/// Numbers that one block takes from L2 in a cycle.
const LOADED: usize = 16;
/// Numbers that all blocks together take from L2 in a cycle.
const CHIP_LOADED: usize = 1000;
/// Of a part: L2's latency, shared by sixteen loads in flight.
const LATENCY: usize = 15;

/// Cycles of a step of the general tile: its products, and the loads before them.
pub(crate) const GENERAL_STEP: usize = 2048;

/// Cycles of a step on tensor cores: a round trip to memory, and products that grow with the rank.
pub(crate) const fn fast_step(rank: usize) -> usize {
    1000 + 8 * rank
}

/// Parts of dT on the general tile: a block of `dy` makes a step for every 32 columns of dY in its part.
pub(crate) fn general_dt(columns: usize, numbers: usize) -> usize {
    cheapest(GENERAL_STEP * columns.div_ceil(DEPTH), numbers, 1)
}

/// Parts that share out `work` cycles, where a block adds up `numbers` of each in `sums` sums at a time.
pub(crate) fn parts(work: usize, numbers: usize, sums: usize) -> usize {
    let lanes = GENERAL_THREADS as usize / sums.next_power_of_two();
    cheapest(work, numbers, lanes.max(1))
}

/// Column tiles that share out `work` cycles and the load of `own` numbers, where each adds up `loads`
/// numbers of parts.
pub(crate) fn tiles(work: usize, own: usize, loads: usize) -> usize {
    ((work + own / LOADED) * CHIP_LOADED / loads.max(1)).isqrt().max(1)
}

/// The number of parts at which `work` / parts and the parts' own costs, LATENCY / lanes +
/// numbers / LOADED each, have the least sum.
fn cheapest(work: usize, numbers: usize, lanes: usize) -> usize {
    (work * lanes * LOADED / (LATENCY * LOADED + numbers * lanes)).isqrt().max(1)
}
