//! The search for a grid above small m: a block's columns, chunks of rows and groups of A's rows.
//!
//! Candidates fill every multiprocessor once, or hold all resident blocks one, two or three times.
//! The cost is the work of one multiprocessor in bytes of memory traffic, so that equal problems
//! get equal grids on every GPU. Its constants are estimates, from the instructions that
//! docs/KERNELS.md lists.

/// Bytes that a multiprocessor could move while a block starts and ends.
const START: usize = 16 << 10;
/// Largest number of waves that a candidate has.
pub(super) const MAX_WAVES: usize = 3;

/// The multiprocessors to fill, and the blocks that each holds at a time.
#[derive(Clone, Copy)]
pub(super) struct Chip {
    processors: usize,
    slots: usize,
    resident: usize,
}

impl Chip {
    /// Returns the chip that holds `blocks` blocks if a multiprocessor holds two.
    pub fn new(blocks: usize, resident: usize) -> Self {
        Self { processors: blocks.div_ceil(2), slots: (blocks * resident / 2).max(1), resident }
    }

    /// Returns the most blocks of a candidate, unless its columns alone are more.
    pub fn most(self) -> usize {
        MAX_WAVES * self.slots
    }

    /// Returns the grids that candidates stay below.
    pub fn targets(self) -> impl Iterator<Item = usize> {
        std::iter::once(self.processors.min(self.slots))
            .chain((1..=MAX_WAVES).map(move |waves| waves * self.slots))
    }

    /// Returns the bytes of work of the busiest multiprocessor: `steps` steps of `step` bytes in each
    /// block, and its share of the parts that the grid leaves to the next kernel.
    pub fn cost(self, grid: usize, steps: usize, step: usize, parts: usize) -> u128 {
        // In quarters of a block. Fewer blocks than fit leave a multiprocessor waiting for a third of the time.
        let turns = if grid <= self.slots {
            (4 * grid.div_ceil(self.processors)).max(3 * self.resident)
        } else {
            4 * grid.div_ceil(self.slots) * self.resident
        };
        let block = steps as u128 * step as u128 + START as u128;
        turns as u128 * block / 4 + parts as u128 / self.processors as u128
    }
}

/// Bytes whose traffic takes as long as a step: its own, or those for which its instructions leave time.
pub(super) fn step_bytes(own: usize, instructions: usize) -> usize {
    // 16.5 bytes a clock, and 4 instructions of which 60 % are issued.
    own.max(instructions * 165 / 24)
}

/// Returns the widths of column tiles to try: the widest first, and none that is more than half empty.
pub(super) fn widths(columns: usize, widest: usize, least: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(widest), move |width| (*width > least).then_some(width / 2))
        .filter(move |&width| width == least || columns > width / 2)
}

/// Returns the divisors of a number.
pub(super) fn divisors(of: usize) -> impl Iterator<Item = usize> {
    (1..=of.isqrt()).filter(move |d| of.is_multiple_of(*d)).flat_map(move |d| [d, of / d])
}
