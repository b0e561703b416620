//! [`Kernels`]: safe calls of the three kernels of one instruction set, over checked views.

use super::factor::{Factor, PackFor};
use super::grid::{RowGrid, RowGridMut};
use super::isa::Isa;
use super::operands::{Groups, Lanes, LanesMut, Rows};
use super::pack::{self, LaneContents};
use super::portable::Portable;
use super::vector::Plain;
use super::{down, outer, spin, up};
use crate::{Accum, Dtype, Element, Error, Result};

/// Arithmetic of the products of activations with a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Products {
    /// Float32 products for every dtype.
    Float32,
    /// Fastest products of the dtype on this instruction set.
    Native,
}

/// Compiles the entry functions of the inner loops for one instruction set.
macro_rules! entries {
    ($name:ident, $simd:ty, down $dm:literal $dr:literal, up $um:literal $up:literal, outer $or:literal $op:literal $(, $features:literal)?) => {
        mod $name {
            use super::*;
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn down<E: Element>(x: RowGrid<E>, c: Lanes, t: &mut RowGridMut<f32>, add: bool) {
                // SAFETY: the caller proves the instruction set and the operands' extents.
                unsafe { down::down::<Plain<$simd>, E, $dm, $dr>(x, c, t, add) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn up<E: Element>(terms: &[(Groups, Lanes)], y: &mut RowGridMut<E>, accum: Accum) {
                // SAFETY: the caller proves the instruction set and the operands' extents.
                unsafe { up::up::<Plain<$simd>, E, $um, $up>(terms, y, accum) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn outer<E: Element>(u: Rows, x: RowGrid<E>, g: &mut LanesMut) {
                // SAFETY: the caller proves the instruction set and the operands' extents.
                unsafe { outer::outer::<Plain<$simd>, E, $or, $op>(u, x, g) }
            }
            $(#[target_feature(enable = $features)])?
            pub(super) unsafe fn pack(factor: Factor, pack_for: PackFor, panel: usize, out: &mut [f32]) {
                // SAFETY: the caller proves the instruction set.
                unsafe {
                    match pack_for {
                        PackFor::Down => factor.for_down::<Plain<$simd>, f32>(out),
                        PackFor::Up => factor.for_up::<Plain<$simd>, f32>(panel, out),
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
                unsafe { spin::spin::<Plain<$simd>, f32>() }
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

/// Entry functions for bf16 products in pairs, and the packing that they need.
#[cfg(target_arch = "x86_64")]
mod dot {
    use half::bf16;

    use super::super::avx512::Dot;
    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn down(x: RowGrid<bf16>, c: Lanes, t: &mut RowGridMut<f32>, add: bool) {
        // SAFETY: the caller proves the instruction set and the operands' extents.
        unsafe { down::down::<Dot, bf16, 3, 8>(x, c, t, add) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn up(terms: &[(Groups, Lanes)], y: &mut RowGridMut<bf16>, accum: Accum) {
        // SAFETY: the caller proves the instruction set and the operands' extents.
        unsafe { up::up::<Dot, bf16, 4, 4>(terms, y, accum) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn outer(u: Rows, x: RowGrid<bf16>, g: &mut LanesMut) {
        // SAFETY: the caller proves the instruction set and the operands' extents.
        unsafe { outer::outer::<Dot, bf16, 8, 3>(u, x, g) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn spin() {
        // SAFETY: the caller proves the instruction set.
        unsafe { spin::spin::<Dot, bf16>() }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) unsafe fn pack(factor: Factor, pack_for: PackFor, panel: usize, out: &mut [f32]) {
        // SAFETY: the caller proves the instruction set.
        unsafe {
            match pack_for {
                PackFor::Down => factor.for_down::<Dot, bf16>(out),
                PackFor::Up => factor.for_up::<Dot, bf16>(panel, out),
            }
        }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn groups(u: &[f32], dims: (usize, usize, usize), s: f32, group: usize, out: &mut [f32]) {
        pack::groups(u, dims, s, group, LaneContents::Pairs, out);
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub(super) fn rows(u: &[f32], dims: (usize, usize, usize), s: f32, out: &mut [f32]) {
        pack::rows(u, dims, s, LaneContents::Pairs, out);
    }
}

/// The kernels of one instruction set for one kind of products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    /// Available on this machine: the only constructor checks it.
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
    /// Returns the kernels for activations of `dtype`.
    ///
    /// # Errors
    /// Fails if this machine lacks the instruction set.
    pub(crate) fn new(isa: Isa, dtype: Dtype, products: Products) -> Result<Self> {
        if !isa.is_available() {
            return Err(Error::Unsupported(format!("this machine has no {isa}, only {}", Isa::detect())));
        }
        let pairs = isa == Isa::Avx512Bf16 && dtype == Dtype::Bf16 && products == Products::Native;
        Ok(Self { isa, pairs })
    }

    /// Returns the kernels of the same instruction set in float32 arithmetic.
    pub(crate) fn float32(self) -> Self {
        Self { pairs: false, ..self }
    }

    /// Float32 lanes of a register.
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

    /// Rows that `up` processes at a time.
    pub(crate) fn group(self) -> usize {
        match self.isa {
            Isa::Portable => 2,
            _ => 4,
        }
    }

    /// Lanes of a panel of a packed factor.
    fn panel(self, pack_for: PackFor) -> usize {
        match (pack_for, self.isa) {
            (PackFor::Down, _) => self.lanes(),
            (PackFor::Up, Isa::Portable | Isa::Avx2) => 2 * self.lanes(),
            (PackFor::Up, Isa::Avx512 | Isa::Avx512Bf16) => 4 * self.lanes(),
        }
    }

    /// Panels of a factor before column `k`, the first column of a panel.
    pub(crate) fn panels(self, pack_for: PackFor, k: usize) -> usize {
        let columns = match pack_for {
            PackFor::Down => self.panel(pack_for) * self.pair(),
            PackFor::Up => self.panel(pack_for),
        };
        assert_eq!(k % columns, 0);
        k / columns
    }

    /// Elements of a packed factor of `ranks` × `width`.
    pub(crate) fn packed_len(self, pack_for: PackFor, ranks: usize, width: usize) -> usize {
        let panel = self.panel(pack_for);
        match pack_for {
            PackFor::Down => width.div_ceil(panel * self.pair()) * ranks * panel,
            PackFor::Up => width.div_ceil(panel) * ranks.div_ceil(self.pair()) * panel,
        }
    }

    /// Packs a factor into `out`, in the order in which one kernel reads it.
    pub(crate) fn pack<'a>(self, factor: Factor, pack_for: PackFor, out: &'a mut [f32]) -> Lanes<'a> {
        let out = &mut out[..self.packed_len(pack_for, factor.ranks, factor.width)];
        let panel = self.panel(pack_for);
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only where the machine has AVX-512 BF16.
            unsafe { dot::pack(factor, pack_for, panel, out) };
            let ranks = if pack_for == PackFor::Up { factor.ranks.div_ceil(2) } else { factor.ranks };
            return Lanes { data: out, panel: ranks * panel, rank: panel };
        }
        dispatch!(self, pack(factor, pack_for, panel, out));
        Lanes { data: out, panel: factor.ranks * panel, rank: panel }
    }

    /// Wraps a factor of float32 rows, `stride` apart, without packing it; not for products in pairs.
    pub(crate) fn unpacked(self, pack_for: PackFor, data: &[f32], stride: usize) -> Lanes<'_> {
        assert!(!self.pairs);
        Lanes { data, panel: self.panel(pack_for), rank: stride }
    }

    /// Elements that [`Kernels::groups`] writes.
    pub(crate) fn groups_len(self, rows: usize, ranks: usize) -> usize {
        rows.next_multiple_of(self.group()) * ranks.div_ceil(self.pair())
    }

    /// Packs s·u for `up`; `u` is \[a, n, ranks\] and a row is (n, a).
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
        pack::groups(u, dims, s, self.group(), LaneContents::Singles, out);
        Groups { data: out, ranks }
    }

    /// Packs s·u for `outer`; `u` is \[a, n, ranks\] and a row is (n, a). Writes at most n·a·ranks elements.
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
        pack::rows(u, dims, s, LaneContents::Singles, out);
        Rows { data: out, ranks }
    }

    /// Adds a gradient in the order of [`Kernels::packed_gradient`] to `out`, in the factor's order; `like.data` is not read.
    pub(crate) fn unpack_add(self, like: Factor, packed: &[f32], out: &mut [f32]) {
        dispatch!(self, unpack_add(like, packed, out));
    }

    /// Computes t\[row, ρ\] (+)= Σ_k x\[row, k\]·c\[ρ, k\].
    pub(crate) fn down<E: Element>(self, x: RowGrid<E>, c: Lanes, t: &mut RowGridMut<f32>, add: bool) {
        assert_eq!(x.layout().rows(), t.layout().rows());
        c.check(x.layout().width.div_ceil(self.pair()), t.layout().width, self.panel(PackFor::Down));
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

    /// Computes y\[row, p\] (+)= Σ_ρ u\[row, ρ\]·b\[ρ, p\], summed over all terms (u, b) before y is met.
    pub(crate) fn up<E: Element>(self, terms: &[(Groups, Lanes)], y: &mut RowGridMut<E>, accum: Accum) {
        for (u, b) in terms {
            assert!(u.data.len() >= y.layout().rows().next_multiple_of(self.group()) * u.ranks);
            b.check(y.layout().width, u.ranks, self.panel(PackFor::Up));
        }
        if y.layout().rows() == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only for bf16 on a machine with AVX-512 BF16; extents are checked.
            return unsafe { dot::up(terms, &mut y.cast(), accum) };
        }
        dispatch!(self, up(terms, y, accum))
    }

    /// Returns a gradient as \[register, ρ, lane\].
    pub(crate) fn packed_gradient(self, ranks: usize, data: &mut [f32]) -> LanesMut<'_> {
        LanesMut { data, register: ranks * self.lanes(), rank: self.lanes() }
    }

    /// Returns a gradient as \[ρ, column\]; `None` if `width` columns do not fill their registers.
    pub(crate) fn rank_major_gradient(self, width: usize, data: &mut [f32]) -> Option<LanesMut<'_>> {
        width.is_multiple_of(self.lanes()).then_some(LanesMut { data, register: self.lanes(), rank: width })
    }

    /// Computes g\[ρ, p\] += Σ_row u\[row, ρ\]·x\[row, p\].
    pub(crate) fn outer<E: Element>(self, u: Rows, x: RowGrid<E>, g: &mut LanesMut) {
        assert!(u.data.len() >= x.layout().rows().div_ceil(self.pair()) * u.ranks);
        g.check(x.layout().width.div_ceil(self.lanes()), u.ranks, self.lanes());
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only for bf16 on a machine with AVX-512 BF16; extents are checked.
            return unsafe { dot::outer(u, x.cast(), g) };
        }
        dispatch!(self, outer(u, x, g))
    }

    /// Runs multiply-adds in registers, for [`super::probe`].
    pub(super) fn spin(self) {
        #[cfg(target_arch = "x86_64")]
        if self.pairs {
            // SAFETY: `pairs` is set only where the machine has AVX-512 BF16.
            return unsafe { dot::spin() };
        }
        dispatch!(self, spin())
    }
}
