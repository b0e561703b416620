//! The kernels' names, and which of them there are.

use std::fmt;

use arrayvec::ArrayString;

use crate::tiles::FAST_RANKS;
use kron_core::Dtype;

/// A kernel's name, `kron_{pass}_{dtype}_{tile}`.
pub type Name = ArrayString<32>;

/// What a pass is cut into.
#[derive(Clone, Copy)]
pub(crate) enum Tile {
    /// The general tile, with so many columns.
    General(usize),
    /// Tensor cores, at this rank.
    Fast(usize),
    /// No tile, and float32 numbers alone.
    None,
}

const GENERAL: [(&str, usize); 13] = [
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
const FAST: [&str; 4] = ["down", "up", "dy", "dx"];
const FLOAT: [&str; 3] = ["dt", "da", "reduce"];

pub(crate) fn name(pass: &str, dtype: Dtype, tile: Tile) -> Name {
    let (mut name, dtype) = (Name::new(), dtype.name());
    let written = match tile {
        Tile::General(width) => fmt::write(&mut name, format_args!("kron_{pass}_{dtype}_t{width}")),
        Tile::Fast(rank) => fmt::write(&mut name, format_args!("kron_{pass}_{dtype}_r{rank}")),
        Tile::None => fmt::write(&mut name, format_args!("kron_{pass}")),
    };
    debug_assert!(written.is_ok(), "the longest name, kron_merge_bf16_t64, fits");
    name
}

/// Every kernel that a plan can launch.
pub fn kernels() -> impl Iterator<Item = Name> {
    let general = |dtype| GENERAL.into_iter().map(move |(pass, cols)| name(pass, dtype, Tile::General(cols)));
    let ranks = |pass, dtype| FAST_RANKS.into_iter().map(move |rank| name(pass, dtype, Tile::Fast(rank)));
    let fast = move |dtype| FAST.into_iter().flat_map(move |pass| ranks(pass, dtype));
    let halves = Dtype::ALL.into_iter().filter(|&dtype| dtype != Dtype::F32);
    let float = FLOAT.into_iter().map(|pass| name(pass, Dtype::F32, Tile::None));
    Dtype::ALL.into_iter().flat_map(general).chain(halves.flat_map(fast)).chain(float)
}
