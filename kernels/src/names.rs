//! The kernels' names.

use std::fmt;

use arrayvec::ArrayString;

use crate::tiles::TENSOR_CORE_RANKS;
use kron_core::Dtype;

/// A kernel's name, `kron_{pass}_{dtype}_{tile}`.
pub type Name = ArrayString<32>;

/// A kernel's tile.
#[derive(Clone, Copy)]
pub(crate) enum Tile {
    /// The SIMT tile with a number of columns.
    Simt(usize),
    /// A tile on tensor cores for one rank.
    TensorCore(usize),
    /// The same at small m.
    SmallM(usize),
    /// The same for one column of A.
    OneColumn(usize),
    /// The same for two columns of A.
    TwoColumns(usize),
    /// Rows of many adapters.
    Segments,
    /// No tile, only float32 elements.
    None,
}

const SIMT: [(&str, usize); 13] = [
    ("down", 16),
    ("down", 64),
    ("up", 64),
    ("v", 16),
    ("v", 64),
    ("db", 16),
    ("db", 64),
    ("dc", 16),
    ("dc", 64),
    ("dx", 64),
    ("dy", 32),
    ("dx", 32),
    ("merge", 64),
];
const TENSOR_CORE: [&str; 4] = ["down", "up", "dy", "dx"];
/// Passes with another kernel at small m.
const SMALL_M: [&str; 2] = ["up", "dx"];
/// Ranks of `dy`'s kernel for few columns of A, the first of [`TENSOR_CORE_RANKS`].
const LOW_RANKS: usize = 4;
/// Passes over segments.
const SEGMENTS: [&str; 5] = ["down", "up", "dy", "grad", "dx"];
const UNTILED: [&str; 7] = ["dt", "da", "reduce", "sort", "stack", "split", "join"];

/// Returns the name of a pass's kernel.
pub(crate) fn name(pass: &str, dtype: Dtype, tile: Tile) -> Name {
    let (mut name, dtype) = (Name::new(), dtype.name());
    let written = match tile {
        Tile::Simt(width) => fmt::write(&mut name, format_args!("kron_{pass}_{dtype}_t{width}")),
        Tile::TensorCore(rank) => fmt::write(&mut name, format_args!("kron_{pass}_{dtype}_r{rank}")),
        Tile::SmallM(rank) => fmt::write(&mut name, format_args!("kron_{pass}_{dtype}_s{rank}")),
        Tile::OneColumn(rank) => fmt::write(&mut name, format_args!("kron_{pass}_{dtype}_m{rank}")),
        Tile::TwoColumns(rank) => fmt::write(&mut name, format_args!("kron_{pass}_{dtype}_n{rank}")),
        Tile::Segments => fmt::write(&mut name, format_args!("kron_{pass}_{dtype}_segments")),
        Tile::None => fmt::write(&mut name, format_args!("kron_{pass}")),
    };
    debug_assert!(written.is_ok(), "the longest name, kron_down_bf16_segments, fits");
    name
}

/// Returns every kernel that a plan can launch.
pub fn kernels() -> impl Iterator<Item = Name> {
    let simt = |dtype| SIMT.into_iter().map(move |(pass, cols)| name(pass, dtype, Tile::Simt(cols)));
    let segments = |dtype| SEGMENTS.into_iter().map(move |pass| name(pass, dtype, Tile::Segments));
    let ranks = |pass, dtype, tile: fn(usize) -> Tile| {
        TENSOR_CORE_RANKS.into_iter().map(move |rank| name(pass, dtype, tile(rank)))
    };
    let tensor_core = move |dtype| {
        let narrow = [Tile::OneColumn, Tile::TwoColumns].into_iter();
        let narrow = narrow.flat_map(move |tile| ranks("dy", dtype, tile).take(LOW_RANKS));
        let small_m = SMALL_M.into_iter().flat_map(move |pass| ranks(pass, dtype, Tile::SmallM));
        TENSOR_CORE
            .into_iter()
            .flat_map(move |pass| ranks(pass, dtype, Tile::TensorCore))
            .chain(small_m)
            .chain(narrow)
    };
    let halves = Dtype::ALL.into_iter().filter(|&dtype| dtype != Dtype::F32);
    let untiled = UNTILED.into_iter().map(|pass| name(pass, Dtype::F32, Tile::None));
    Dtype::ALL
        .into_iter()
        .flat_map(simt)
        .chain(Dtype::ALL.into_iter().flat_map(segments))
        .chain(halves.flat_map(tensor_core))
        .chain(untiled)
}
