//! The safe ring: [`Kernels`], the three kernels of one instruction set over checked views.

use half::bf16;

use super::factor::Factor;
use super::grid::{Grid, GridMut};
use super::isa::Isa;
use super::operands::{Groups, Lanes, Rows};
use super::pack::{self, Form};
use super::portable::Portable;
use super::vector::Plain;
use super::{down, outer, probe, up};
use crate::{Accum, Dtype, Element, Error, Result};

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
            pub(super) unsafe fn up<E: Element>(u: Groups, b: Lanes, y: &mut GridMut<E>, accum: Accum) {
                // SAFETY: the caller proves the instruction set and the operands' extents.
                unsafe { up::up::<Plain<$simd>, E, $um, $up>(u, b, y, accum) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn outer<E: Element>(u: Rows, x: Grid<E>, g: &mut [f32]) {
                // SAFETY: the caller proves the instruction set and the operands' extents.
                unsafe { outer::outer::<Plain<$simd>, E, $or, $op>(u, x, g) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn pack(factor: Factor, side: Side, panel: usize, out: &mut [f32]) {
                // SAFETY: the caller proves the instruction set.
                unsafe {
                    match side {
                        Side::Down => factor.for_down::<Plain<$simd>, f32>(out),
                        Side::Up => factor.for_up::<Plain<$simd>, f32>(panel, out),
                    }
                }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn unpack_add(like: Factor, packed: &[f32], out: &mut [f32]) {
                // SAFETY: the caller proves the instruction set.
                unsafe { like.add_singles::<$simd>(packed, out) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn spin() {
                // SAFETY: the caller proves the instruction set.
                unsafe { probe::spin::<Plain<$simd>, f32>() }
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
    pub(super) unsafe fn up(u: Groups, b: Lanes, y: &mut GridMut<bf16>, accum: Accum) {
        // SAFETY: the caller proves the instruction set and the operands' extents.
        unsafe { up::up::<Dot, bf16, 4, 4>(u, b, y, accum) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn outer(u: Rows, x: Grid<bf16>, g: &mut [f32]) {
        // SAFETY: the caller proves the instruction set and the operands' extents.
        unsafe { outer::outer::<Dot, bf16, 8, 3>(u, x, g) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn spin() {
        // SAFETY: the caller proves the instruction set.
        unsafe { probe::spin::<Dot, bf16>() }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn pack(factor: Factor, side: Side, panel: usize, out: &mut [f32]) {
        // SAFETY: the caller proves the instruction set.
        unsafe {
            match side {
                Side::Down => factor.for_down::<Dot, bf16>(out),
                Side::Up => factor.for_up::<Dot, bf16>(panel, out),
            }
        }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn groups(u: &[f32], dims: (usize, usize, usize), s: f32, group: usize, out: &mut [f32]) {
        pack::groups(u, dims, s, group, Form::Pairs, out);
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn rows(u: &[f32], dims: (usize, usize, usize), s: f32, out: &mut [f32]) {
        pack::rows(u, dims, s, Form::Pairs, out);
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

    /// Rows that `up` takes at a time.
    pub(crate) fn group(self) -> usize {
        match self.isa {
            Isa::Portable => 2,
            _ => 4,
        }
    }

    /// Lanes of a panel.
    fn panel(self, side: Side) -> usize {
        match (side, self.isa) {
            (Side::Down, _) => self.lanes(),
            (Side::Up, Isa::Portable | Isa::Avx2) => 2 * self.lanes(),
            (Side::Up, Isa::Avx512 | Isa::Avx512Bf16) => 4 * self.lanes(),
        }
    }

    /// Panels of a factor before column `k`, which is at the start of one.
    pub(crate) fn panels(self, side: Side, k: usize) -> usize {
        let columns = match side {
            Side::Down => self.panel(side) * self.pair(),
            Side::Up => self.panel(side),
        };
        assert_eq!(k % columns, 0);
        k / columns
    }

    /// Numbers of a packed factor of `ranks` × `width`.
    pub(crate) fn packed_len(self, side: Side, ranks: usize, width: usize) -> usize {
        let panel = self.panel(side);
        match side {
            Side::Down => width.div_ceil(panel * self.pair()) * ranks * panel,
            Side::Up => width.div_ceil(panel) * ranks.div_ceil(self.pair()) * panel,
        }
    }

    /// A factor in the order of one kernel.
    pub(crate) fn pack<'a>(self, factor: Factor, side: Side, out: &'a mut [f32]) -> Lanes<'a> {
        let out = &mut out[..self.packed_len(side, factor.ranks, factor.width)];
        let panel = self.panel(side);
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only where the machine has AVX-512 BF16.
            unsafe { dot::pack(factor, side, panel, out) };
            let ranks = if side == Side::Up { factor.ranks.div_ceil(2) } else { factor.ranks };
            return Lanes { data: out, panel: ranks * panel, rank: panel };
        }
        dispatch!(self, pack(factor, side, panel, out));
        Lanes { data: out, panel: factor.ranks * panel, rank: panel }
    }

    /// A factor of float32 rows as it lies, `stride` apart; only for kernels that are not in pairs.
    pub(crate) fn unpacked(self, side: Side, data: &[f32], stride: usize) -> Lanes<'_> {
        assert!(!self.pairs);
        Lanes { data, panel: self.panel(side), rank: stride }
    }

    /// Numbers that [`Kernels::groups`] writes.
    pub(crate) fn groups_len(self, rows: usize, ranks: usize) -> usize {
        rows.next_multiple_of(self.group()) * ranks.div_ceil(self.pair())
    }

    /// s·u for `up`; `u` is \[a, n, ranks\] and a row is (n, a).
    pub(crate) fn groups<'a>(
        self,
        u: &[f32],
        dims: (usize, usize, usize),
        s: f32,
        out: &'a mut [f32],
    ) -> Groups<'a> {
        let (n, a, ranks) = dims;
        let out = &mut out[..self.groups_len(n * a, ranks)];
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only where the machine has AVX-512 BF16.
            unsafe { dot::groups(u, dims, s, self.group(), out) };
            return Groups { data: out, ranks: ranks.div_ceil(2) };
        }
        pack::groups(u, dims, s, self.group(), Form::Singles, out);
        Groups { data: out, ranks }
    }

    /// s·u for `outer`; `u` is \[a, n, ranks\] and a row is (n, a). Needs n·a·ranks numbers.
    pub(crate) fn rows<'a>(
        self,
        u: &[f32],
        dims: (usize, usize, usize),
        s: f32,
        out: &'a mut [f32],
    ) -> Rows<'a> {
        let (n, a, ranks) = dims;
        let out = &mut out[..(n * a).div_ceil(self.pair()) * ranks];
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only where the machine has AVX-512 BF16.
            unsafe { dot::rows(u, dims, s, out) };
            return Rows { data: out, ranks };
        }
        pack::rows(u, dims, s, Form::Singles, out);
        Rows { data: out, ranks }
    }

    /// Adds a gradient that [`Kernels::outer`] summed to the factor's own order; `like.data` is not read.
    pub(crate) fn unpack_add(self, like: Factor, packed: &[f32], out: &mut [f32]) {
        dispatch!(self, unpack_add(like, packed, out));
    }

    /// t\[row, ρ\] (+)= Σ_k x\[row, k\]·c\[ρ, k\].
    pub(crate) fn down<E: Element>(self, x: Grid<E>, c: Lanes, t: &mut GridMut<f32>, add: bool) {
        assert_eq!(x.layout().rows(), t.layout().rows());
        c.check(x.layout().width.div_ceil(self.pair()), t.layout().width, self.panel(Side::Down));
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
    pub(crate) fn up<E: Element>(self, u: Groups, b: Lanes, y: &mut GridMut<E>, accum: Accum) {
        assert!(u.data.len() >= y.layout().rows().next_multiple_of(self.group()) * u.ranks);
        b.check(y.layout().width, u.ranks, self.panel(Side::Up));
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
    pub(crate) fn outer<E: Element>(self, u: Rows, x: Grid<E>, g: &mut [f32]) {
        assert!(u.data.len() >= x.layout().rows().div_ceil(self.pair()) * u.ranks);
        assert!(g.len() >= x.layout().width.div_ceil(self.lanes()) * self.lanes() * u.ranks);
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only for bf16 on a machine with AVX-512 BF16; extents are checked.
            return unsafe { dot::outer(u, x.cast(), g) };
        }
        dispatch!(self, outer(u, x, g))
    }

    /// Multiply-adds in registers, for [`probe`].
    pub(super) fn spin(self) {
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only where the machine has AVX-512 BF16.
            return unsafe { dot::spin() };
        }
        dispatch!(self, spin())
    }
}
