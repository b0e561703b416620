//! The cost model for calls at small m, in clock cycles. Its constants are estimates.
//!
//! More parts of a sum leave fewer steps to the blocks that compute them, and longer sums to the
//! blocks that add them. Narrower column tiles give each block less of its own to load, but
//! every block adds up all parts.

use crate::tiles::{DEPTH, SIMT_THREADS};

/// Elements that one block loads from L2 in a cycle.
const BLOCK_LOADS: usize = 16;
/// Elements that all blocks together load from L2 in a cycle.
const GPU_LOADS: usize = 1000;
/// Cycles of a part: L2's latency, shared by sixteen loads in flight.
const LATENCY: usize = 15;

/// Cycles of a step of the SIMT tile: its products, and the loads before them.
pub(super) const SIMT_STEP: usize = 2048;

/// Returns the cycles of a step on tensor cores: a round trip to memory, and products that grow with the rank.
pub(super) const fn tensor_core_step(rank: usize) -> usize {
    1000 + 8 * rank
}

/// Returns the parts of dT on the SIMT tile, of `elements` each: a block of `dy` takes one step for every 32
/// columns of dY in its part.
pub(super) fn simt_dt_parts(columns: usize, elements: usize) -> usize {
    cheapest(simt_dt_work(columns), elements, 1)
}

/// Returns the cycles that the parts of dT divide on the SIMT tile.
pub(super) const fn simt_dt_work(columns: usize) -> usize {
    SIMT_STEP * columns.div_ceil(DEPTH)
}

/// Returns the parts that divide `work` cycles, if a block adds up `elements` of each part, `sums` at a time.
pub(super) fn parts(work: usize, elements: usize, sums: usize) -> usize {
    let lanes = SIMT_THREADS as usize / sums.next_power_of_two();
    cheapest(work, elements, lanes.max(1))
}

/// Returns the column tiles that divide `work` cycles and the load of `own` elements, if each tile also
/// loads `loads` elements of parts.
pub(super) fn column_tiles(work: usize, own: usize, loads: usize) -> usize {
    ((work + own / BLOCK_LOADS) * GPU_LOADS / loads.max(1)).isqrt().max(1)
}

/// Returns the number of parts with the least cost: `work` / parts, and LATENCY / lanes +
/// elements / BLOCK_LOADS for each part.
fn cheapest(work: usize, elements: usize, lanes: usize) -> usize {
    (work * lanes * BLOCK_LOADS / (LATENCY * BLOCK_LOADS + elements * lanes)).isqrt().max(1)
}

/// Returns the most parts that any number of lanes gives.
pub(super) fn max_parts(work: usize, elements: usize) -> usize {
    (work * BLOCK_LOADS / elements).isqrt().max(1)
}

/// Returns the most elements that are divided into two parts or more.
pub(super) const fn max_divided(work: usize) -> usize {
    work * BLOCK_LOADS / 4
}

/// Returns the most elements that all parts together take, for any number of lanes. More elements
/// never take less: parts² ≤ work · BLOCK_LOADS / elements, or there is one part.
pub(super) fn max_scratch(work: usize, elements: usize) -> usize {
    let all = (work as u128 * BLOCK_LOADS as u128 * elements as u128).isqrt();
    usize::try_from(all).unwrap_or(usize::MAX).max(elements)
}
