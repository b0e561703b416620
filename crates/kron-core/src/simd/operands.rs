//! Operands of the kernels, in the order in which the kernels read them.

/// A packed factor. Panel i of rank ρ starts at i·panel + ρ·rank; a panel is one
/// register for `down` and several adjacent ones for `up`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Lanes<'a> {
    pub(super) data: &'a [f32],
    pub(super) panel: usize,
    pub(super) rank: usize,
}

impl Lanes<'_> {
    /// Returns a pointer to rank 0 of panel `i`.
    #[inline(always)]
    pub(super) fn panel(&self, i: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(i * self.panel)
    }

    /// Distance from one rank to the next.
    #[inline(always)]
    pub(super) fn rank_stride(&self) -> usize {
        self.rank
    }

    /// Returns the panels from `i` on.
    pub(crate) fn after(&self, i: usize) -> Self {
        Self { data: &self.data[i * self.panel..], ..*self }
    }

    /// Returns the ranks from `rho` on.
    pub(super) fn rank(&self, rho: usize) -> Self {
        Self { data: &self.data[rho * self.rank..], ..*self }
    }

    /// Panics if `count` lanes of each rank, `panel` per panel, do not all lie inside.
    pub(super) fn check(&self, count: usize, ranks: usize, panel: usize) {
        if count > 0 && ranks > 0 {
            let last = (count - 1) / panel;
            let end = last * self.panel + (ranks - 1) * self.rank + (count - last * panel);
            assert!(end <= self.data.len(), "{count} lanes of {ranks} ranks end at {end}");
        }
    }
}

/// A gradient that `outer` adds to. Register v of rank ρ starts at v·register + ρ·rank.
pub(crate) struct LanesMut<'a> {
    pub(super) data: &'a mut [f32],
    pub(super) register: usize,
    pub(super) rank: usize,
}

impl LanesMut<'_> {
    /// Returns the registers from `v` on.
    pub(crate) fn after(&mut self, v: usize) -> LanesMut<'_> {
        LanesMut { data: &mut self.data[v * self.register..], ..*self }
    }

    /// Panics if `registers` registers of each rank do not all lie inside.
    pub(super) fn check(&self, registers: usize, ranks: usize, lanes: usize) {
        if registers > 0 && ranks > 0 {
            let end = (registers - 1) * self.register + (ranks - 1) * self.rank + lanes;
            assert!(end <= self.data.len(), "{registers} registers of {ranks} ranks end at {end}");
        }
    }
}

/// Scalars of `up`, \[group of rows, rank, row\].
#[derive(Clone, Copy, Default)]
pub(crate) struct Groups<'a> {
    pub(super) data: &'a [f32],
    pub(super) ranks: usize,
}

impl Groups<'_> {
    /// Elements of a row.
    pub(crate) fn ranks(&self) -> usize {
        self.ranks
    }

    /// Returns a pointer to rank 0 of row `r`; the ranks of a row are G elements apart.
    #[inline(always)]
    pub(super) fn row<const G: usize>(&self, r: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(r / G * G * self.ranks + r % G)
    }
}

/// Scalars of `outer`, \[row or pair of rows, rank\].
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(super) data: &'a [f32],
    pub(super) ranks: usize,
}
