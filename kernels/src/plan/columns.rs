//! Splitting columns into tiles and ranges.

/// Column tiles of a launch: their number and width.
#[derive(Clone, Copy)]
pub(super) struct Cols {
    pub tiles: usize,
    pub width: usize,
}

impl Cols {
    /// A launch without column tiles.
    pub const ONE: Self = Self { tiles: 1, width: 0 };

    /// The tiles of `total` columns.
    pub fn of(total: usize, width: usize) -> Self {
        Self { tiles: total.div_ceil(width), width }
    }
}

/// Width of each of at most `parts` ranges of `total` columns: a multiple of a kernel's `stage`,
/// or less than a stage, in steps of the tensor cores' 16 columns.
pub(super) fn even_columns(total: usize, parts: usize, stage: usize) -> usize {
    let columns = total.div_ceil(parts.max(1));
    columns.next_multiple_of(if columns > stage { stage } else { 16 })
}

/// The multiple of a warp's columns nearest to `columns`, from one warp's to `widest`.
pub(super) fn narrow(columns: usize, warp: usize, widest: usize) -> usize {
    ((columns + warp / 2) / warp * warp).clamp(warp, widest)
}

/// Number of non-empty ranges if `total` is divided into at most `parts` equal ones.
pub(super) fn even(total: usize, parts: usize) -> usize {
    total.div_ceil(total.div_ceil(parts))
}
