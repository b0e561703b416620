//! The safe ring: instruction sets, operands, and the three kernels over checked views.

use half::bf16;

use super::grid::{Grid, GridMut};
use super::pack::{self, Factor};
use super::portable::Portable;
use super::vector::Plain;
use super::{down, outer, up};
use crate::{Accum, Dtype, Element, Error, Result};

/// An instruction set of the CPU backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Any CPU.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same with BF16: bf16 activations meet factors rounded to bf16, in
    /// pairs, as on a tensor core; sums stay float32.
    Avx512Bf16,
}

impl Isa {
    /// All of them, plainest first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The name used on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
            match self {
                Isa::Portable => true,
                Isa::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
                Isa::Avx512 => avx512,
                Isa::Avx512Bf16 => avx512 && has!("avx512bf16"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable
        }
    }

    /// The best one of this machine.
    pub fn detect() -> Self {
        let best = Isa::ALL.into_iter().rev().find(|isa| isa.is_available());
        best.unwrap_or(Isa::Portable)
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Isa {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Isa::ALL.into_iter().find(|isa| isa.name() == s).ok_or_else(|| {
            Error::Value(format!("instruction set {s:?} is not one of portable, avx2, avx512, avx512bf16"))
        })
    }
}

/// A factor in registers: lanes l of register v of rank ρ are at
/// v·vector + ρ·rank + l.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<'a> {
    data: &'a [f32],
    vector: usize,
    rank: usize,
}

impl<'a> Lanes<'a> {
    /// As [`Kernels::pack`] leaves it.
    pub(crate) fn packed(data: &'a [f32], ranks: usize, lanes: usize) -> Self {
        Self { data, vector: ranks * lanes, rank: lanes }
    }

    /// Rows of plain float32 numbers, `stride` apart.
    pub(crate) fn rows(data: &'a [f32], stride: usize, lanes: usize) -> Self {
        Self { data, vector: lanes, rank: stride }
    }

    #[inline(always)]
    pub(super) fn at(&self, v: usize, rho: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(v * self.vector + rho * self.rank)
    }

    /// From register `v` on.
    pub(crate) fn after(&self, v: usize) -> Self {
        Self { data: &self.data[v * self.vector..], ..*self }
    }

    /// From rank `rho` on.
    pub(super) fn rank(&self, rho: usize) -> Self {
        Self { data: &self.data[rho * self.rank..], ..*self }
    }

    /// Refuses to go on when `count` lanes of each rank are not all inside.
    fn check(&self, count: usize, ranks: usize, lanes: usize) {
        if count > 0 && ranks > 0 {
            let last = (count - 1) / lanes;
            let end = last * self.vector + (ranks - 1) * self.rank + (count - last * lanes);
            assert!(end <= self.data.len(), "{count} lanes of {ranks} ranks end at {end}");
        }
    }
}

/// One number per (row, ρ): row (n, a), rank ρ is at ρ·stride in its row of the grid.
#[derive(Clone, Copy)]
pub(crate) struct Scalars<'a> {
    pub(super) rows: Grid<'a, f32>,
    pub(super) ranks: usize,
    pub(super) stride: isize,
}

impl<'a> Scalars<'a> {
    /// Strides are (token, block, rank).
    pub(crate) fn new(
        data: &'a [f32],
        (n, a): (usize, usize),
        strides: (usize, usize, usize),
        ranks: usize,
    ) -> Self {
        let width = (ranks - 1) * strides.2 + 1;
        let rows = Grid::new(data, n, a, (strides.0, strides.1), width);
        Self { rows, ranks, stride: strides.2 as isize }
    }
}

/// In which arithmetic activations meet a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Products {
    /// Float32, whatever the activations are.
    Float32,
    /// The fastest that the dtype has on this instruction set.
    Native,
}

/// A function of the inner loops, compiled once per instruction set.
macro_rules! entries {
    ($name:ident, $simd:ty, down $dm:literal $dr:literal, up $um:literal $up:literal, outer $or:literal $op:literal $(, $features:literal)?) => {
        mod $name {
            use super::*;
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn down<E: Element>(x: Grid<E>, c: Lanes, t: &mut GridMut<f32>, add: bool) {
                // SAFETY: the caller proves the instruction set and the operands' extents.
                unsafe { down::down::<Plain<$simd>, E, $dm, $dr>(x, c, t, add) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn up<E: Element>(u: Scalars, b: Lanes, y: &mut GridMut<E>, accum: Accum) {
                // SAFETY: the caller proves the instruction set and the operands' extents.
                unsafe { up::up::<Plain<$simd>, E, $um, $up>(u, b, y, accum) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn outer<E: Element>(u: Scalars, x: Grid<E>, g: &mut [f32]) {
                // SAFETY: the caller proves the instruction set and the operands' extents.
                unsafe { outer::outer::<Plain<$simd>, E, $or, $op>(u, x, g) }
            }
        }
    };
}

entries!(portable, Portable, down 2 4, up 2 2, outer 4 1);
#[cfg(target_arch = "x86_64")]
entries!(avx2, super::super::avx2::Avx2, down 3 4, up 4 2, outer 4 2, "avx2,fma,f16c");
#[cfg(target_arch = "x86_64")]
entries!(
    avx512, super::super::avx512::Avx512<false>, down 3 8, up 4 4, outer 8 3,
    "avx512f,avx512bw,avx512dq,avx512vl"
);
#[cfg(target_arch = "x86_64")]
entries!(
    avx512bf16, super::super::avx512::Avx512<true>, down 3 8, up 4 4, outer 8 3,
    "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"
);

/// bf16 products in pairs, and what brings the factors into that form.
#[cfg(target_arch = "x86_64")]
mod dot {
    use super::super::avx512::Dot;
    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn down(x: Grid<bf16>, c: Lanes, t: &mut GridMut<f32>, add: bool) {
        // SAFETY: the caller proves the instruction set and the operands' extents.
        unsafe { down::down::<Dot, bf16, 3, 8>(x, c, t, add) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn up(u: Scalars, b: Lanes, y: &mut GridMut<bf16>, accum: Accum) {
        // SAFETY: the caller proves the instruction set and the operands' extents.
        unsafe { up::up::<Dot, bf16, 4, 4>(u, b, y, accum) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn outer(u: Scalars, x: Grid<bf16>, g: &mut [f32]) {
        // SAFETY: the caller proves the instruction set and the operands' extents.
        unsafe { outer::outer::<Dot, bf16, 8, 3>(u, x, g) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn pack(factor: Factor, side: Side, out: &mut [f32]) {
        match side {
            Side::Down => factor.pairs_of_columns(16, out),
            Side::Up => factor.pairs_of_ranks(16, out),
        }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn pair_ranks(u: &[f32], ranks: usize, s: f32, out: &mut [f32]) {
        pack::pair_ranks(u, ranks, s, out);
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn pair_rows(u: &[f32], dims: (usize, usize, usize), s: f32, out: &mut [f32]) {
        pack::pair_rows(u, dims, s, out);
    }
}

/// Which kernel a packed factor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// `down`: sums run along the factor's width.
    Down,
    /// `up`: sums run along its ranks.
    Up,
}

/// The kernels of one instruction set for one kind of products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    /// Available: the only constructor checks.
    isa: Isa,
    pairs: bool,
}

/// Calls the entry of the instruction set in `$self.isa`.
macro_rules! dispatch {
    ($self:ident, $name:ident($($arg:expr),*)) => {
        // SAFETY: `Kernels` holds only an instruction set that this machine
        // has, and the caller of this macro has checked every extent.
        unsafe {
            match $self.isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => avx2::$name($($arg),*),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => avx512::$name($($arg),*),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512Bf16 => avx512bf16::$name($($arg),*),
                _ => portable::$name($($arg),*),
            }
        }
    };
}

impl Kernels {
    /// # Errors
    /// An instruction set that this machine lacks.
    pub(crate) fn new(isa: Isa, dtype: Dtype, products: Products) -> Result<Self> {
        if !isa.is_available() {
            return Err(Error::Unsupported(format!("this machine has no {isa}, only {}", Isa::detect())));
        }
        let pairs = isa == Isa::Avx512Bf16 && dtype == Dtype::Bf16 && products == Products::Native;
        Ok(Self { isa, pairs })
    }

    /// The same instruction set in float32 arithmetic.
    pub(crate) fn float32(self) -> Self {
        Self { pairs: false, ..self }
    }

    /// Float32 numbers per register.
    pub(crate) fn lanes(self) -> usize {
        match self.isa {
            Isa::Portable | Isa::Avx2 => 8,
            Isa::Avx512 | Isa::Avx512Bf16 => 16,
        }
    }

    /// Elements of the summed dimension per lane.
    pub(crate) fn pair(self) -> usize {
        1 + usize::from(self.pairs)
    }

    /// Numbers of a packed factor of `ranks` × `width`.
    pub(crate) fn packed_len(self, side: Side, ranks: usize, width: usize) -> usize {
        match side {
            Side::Down => width.div_ceil(self.lanes() * self.pair()) * ranks * self.lanes(),
            Side::Up => width.div_ceil(self.lanes()) * ranks.div_ceil(self.pair()) * self.lanes(),
        }
    }

    /// A factor in the order of one kernel.
    pub(crate) fn pack<'a>(self, factor: Factor, side: Side, out: &'a mut [f32]) -> Lanes<'a> {
        let out = &mut out[..self.packed_len(side, factor.ranks, factor.width)];
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only where the machine has AVX-512 BF16.
            unsafe { dot::pack(factor, side, out) };
            let ranks = if side == Side::Up { factor.ranks.div_ceil(2) } else { factor.ranks };
            return Lanes::packed(out, ranks, self.lanes());
        }
        factor.singles(self.lanes(), out);
        Lanes::packed(out, factor.ranks, self.lanes())
    }

    /// Adds a gradient that [`Kernels::outer`] summed to the factor's own order; `like.data` is not read.
    pub(crate) fn unpack_add(self, like: Factor, packed: &[f32], out: &mut [f32]) {
        like.add_singles(self.lanes(), packed, out);
    }

    /// t\[row, ρ\] (+)= Σ_k x\[row, k\]·c\[ρ, k\].
    pub(crate) fn down<E: Element>(self, x: Grid<E>, c: Lanes, t: &mut GridMut<f32>, add: bool) {
        assert_eq!(x.layout().rows(), t.layout().rows());
        c.check(x.layout().width.div_ceil(self.pair()), t.layout().width, self.lanes());
        if x.layout().rows() == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only for bf16 on a machine with AVX-512 BF16; extents are checked.
            return unsafe { dot::down(x.cast(), c, t, add) };
        }
        dispatch!(self, down(x, c, t, add))
    }

    /// y\[row, p\] (+)= Σ_ρ u\[row, ρ\]·b\[ρ, p\].
    pub(crate) fn up<E: Element>(self, u: Scalars, b: Lanes, y: &mut GridMut<E>, accum: Accum) {
        assert_eq!(u.rows.layout().rows(), y.layout().rows());
        b.check(y.layout().width, u.ranks, self.lanes());
        if y.layout().rows() == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only for bf16 on a machine with AVX-512 BF16; extents are checked.
            return unsafe { dot::up(u, b, &mut y.cast(), accum) };
        }
        dispatch!(self, up(u, b, y, accum))
    }

    /// g\[ρ, p\] += Σ_row u\[row, ρ\]·x\[row, p\], with g as \[register, ρ, lane\].
    pub(crate) fn outer<E: Element>(self, u: Scalars, x: Grid<E>, g: &mut [f32]) {
        assert_eq!(u.rows.layout().rows(), x.layout().rows().div_ceil(self.pair()));
        assert!(g.len() >= x.layout().width.div_ceil(self.lanes()) * self.lanes() * u.ranks);
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only for bf16 on a machine with AVX-512 BF16; extents are checked.
            return unsafe { dot::outer(u, x.cast(), g) };
        }
        dispatch!(self, outer(u, x, g))
    }

    /// s·u for `up`. `u` is \[a, n, ranks\]; in pairs the result is written to `room`, else s is
    /// multiplied in place.
    pub(crate) fn scalars_for_up<'a>(
        self,
        u: &'a mut [f32],
        dims: (usize, usize, usize),
        s: f32,
        room: &'a mut [f32],
    ) -> Scalars<'a> {
        let (n, a, ranks) = dims;
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            let pairs = ranks.div_ceil(2);
            let room = &mut room[..n * a * pairs];
            // SAFETY: `pairs` is set only where the machine has AVX-512 BF16.
            unsafe { dot::pair_ranks(u, ranks, s, room) };
            return Scalars::new(room, (n, a), (pairs, n * pairs, 1), pairs);
        }
        multiply(u, s);
        let _ = room;
        Scalars::new(u, (n, a), (ranks, n * ranks, 1), ranks)
    }

    /// s·u for `outer`, in the same manner.
    pub(crate) fn scalars_for_outer<'a>(
        self,
        u: &'a mut [f32],
        dims: (usize, usize, usize),
        s: f32,
        room: &'a mut [f32],
    ) -> Scalars<'a> {
        let (n, a, ranks) = dims;
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            let pairs = (n * a).div_ceil(2);
            let room = &mut room[..pairs * ranks];
            // SAFETY: `pairs` is set only where the machine has AVX-512 BF16.
            unsafe { dot::pair_rows(u, dims, s, room) };
            return Scalars::new(room, (pairs, 1), (ranks, ranks, 1), ranks);
        }
        multiply(u, s);
        let _ = room;
        Scalars::new(u, (n, a), (ranks, n * ranks, 1), ranks)
    }
}

fn multiply(u: &mut [f32], s: f32) {
    if s != 1.0 {
        u.iter_mut().for_each(|u| *u *= s);
    }
}
