//! What the kernels multiply activations with, in the order in which they read it.

/// A factor in registers: panel i (one register for `down`, several side by
/// side for `up`) of rank ρ is at i·panel + ρ·rank.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<'a> {
    pub(super) data: &'a [f32],
    pub(super) panel: usize,
    pub(super) rank: usize,
}

impl Lanes<'_> {
    /// Rank 0 of panel `i`.
    #[inline(always)]
    pub(super) fn panel(&self, i: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(i * self.panel)
    }

    /// From one rank to the next.
    #[inline(always)]
    pub(super) fn rank_stride(&self) -> usize {
        self.rank
    }

    /// From panel `i` on.
    pub(crate) fn after(&self, i: usize) -> Self {
        Self { data: &self.data[i * self.panel..], ..*self }
    }

    /// From rank `rho` on.
    pub(super) fn rank(&self, rho: usize) -> Self {
        Self { data: &self.data[rho * self.rank..], ..*self }
    }

    /// Refuses to go on when `count` lanes of each rank, `panel` to a panel, are not all inside.
    pub(super) fn check(&self, count: usize, ranks: usize, panel: usize) {
        if count > 0 && ranks > 0 {
            let last = (count - 1) / panel;
            let end = last * self.panel + (ranks - 1) * self.rank + (count - last * panel);
            assert!(end <= self.data.len(), "{count} lanes of {ranks} ranks end at {end}");
        }
    }
}

/// The scalars of `up`, \[group of rows, rank, row\].
#[derive(Clone, Copy)]
pub(crate) struct Groups<'a> {
    pub(super) data: &'a [f32],
    pub(super) ranks: usize,
}

impl Groups<'_> {
    /// Numbers per row.
    pub(crate) fn ranks(&self) -> usize {
        self.ranks
    }

    /// The numbers of row `r` are this far apart from rank to rank: G.
    #[inline(always)]
    pub(super) fn row<const G: usize>(&self, r: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(r / G * G * self.ranks + r % G)
    }
}

/// The scalars of `outer`, \[row or pair of rows, rank\].
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) ranks: usize,
}
