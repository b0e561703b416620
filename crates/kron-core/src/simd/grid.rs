//! [`RowGrid`]: a matrix of n tokens × a blocks, seen as n·a rows.
//!
//! Row (n, a) starts at n·n_stride + a·a_stride. X as n × a_in × c_in and as
//! n × d_in is the same grid, so reshaping never copies.

use std::marker::PhantomData;

use ndarray::{ArrayView2, ArrayViewMut2};

/// Number, strides and width of the rows, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowLayout {
    /// Tokens.
    pub n: usize,
    /// Blocks of a token.
    pub a: usize,
    /// Distance from one token to the next.
    pub n_stride: isize,
    /// Distance from one block to the next.
    pub a_stride: isize,
    /// Elements of one row.
    pub width: usize,
}

impl RowLayout {
    /// Number of rows; their order is (0, 0), (0, 1), …
    pub(crate) fn rows(&self) -> usize {
        self.n * self.a
    }

    /// Offset of row `r` in that order.
    #[inline(always)]
    fn offset(&self, r: usize) -> isize {
        let (n, a) = if self.a == 1 { (r, 0) } else { (r / self.a, r % self.a) };
        n as isize * self.n_stride + a as isize * self.a_stride
    }

    /// Length of the shortest slice that starts with row (0, 0) and holds every row.
    fn extent(&self) -> usize {
        if self.rows() == 0 || self.width == 0 {
            return 0;
        }
        (self.n - 1) * self.n_stride as usize + (self.a - 1) * self.a_stride as usize + self.width
    }

    fn of_slice(len: usize, n: usize, a: usize, strides: (usize, usize), width: usize) -> Self {
        let layout = RowLayout { n, a, n_stride: strides.0 as isize, a_stride: strides.1 as isize, width };
        assert!(layout.extent() <= len, "a grid {layout:?} over {len} elements");
        layout
    }

    /// Layout of an n × (a·width) matrix with unit inner stride.
    fn of_matrix(shape: &[usize], strides: &[isize], a: usize) -> Self {
        assert!(shape[1].is_multiple_of(a) && (strides[1] == 1 || shape[1] == 1 || shape[0] == 0));
        let width = shape[1] / a;
        RowLayout { n: shape[0], a, n_stride: strides[0], a_stride: width as isize, width }
    }

    fn columns(&self, first: usize, width: usize) -> Self {
        assert!(first + width <= self.width, "columns {first} + {width} of {self:?}");
        RowLayout { width, ..*self }
    }

    fn tokens(&self, first: usize, n: usize) -> Self {
        assert!(first + n <= self.n, "tokens {first} + {n} of {self:?}");
        RowLayout { n, ..*self }
    }
}

/// Rows that are read.
pub(crate) struct RowGrid<'a, E> {
    ptr: *const E,
    layout: RowLayout,
    life: PhantomData<&'a [E]>,
}

/// Rows that are written. No two rows of a grid overlap.
pub(crate) struct RowGridMut<'a, E> {
    ptr: *mut E,
    layout: RowLayout,
    life: PhantomData<&'a mut [E]>,
}

impl<E> Clone for RowGrid<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for RowGrid<'_, E> {}

// SAFETY: a RowGrid stands for a shared slice.
unsafe impl<E: Sync> Send for RowGrid<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for RowGrid<'_, E> {}

impl<'a, E> RowGrid<'a, E> {
    /// Returns the rows inside `data`; strides are (token, block).
    pub(crate) fn new(data: &'a [E], n: usize, a: usize, strides: (usize, usize), width: usize) -> Self {
        let layout = RowLayout::of_slice(data.len(), n, a, strides, width);
        Self { ptr: data.as_ptr(), layout, life: PhantomData }
    }

    /// Returns the n × a rows of an n × (a·width) matrix.
    pub(crate) fn of_view(view: ArrayView2<'a, E>, a: usize) -> Self {
        let layout = RowLayout::of_matrix(view.shape(), view.strides(), a);
        Self { ptr: view.as_ptr(), layout, life: PhantomData }
    }

    /// Returns the same rows as elements of a type of equal size.
    #[cfg(target_arch = "x86_64")] // for the products in pairs
    pub(super) fn cast<F>(self) -> RowGrid<'a, F> {
        assert_eq!(size_of::<E>(), size_of::<F>());
        RowGrid { ptr: self.ptr.cast(), layout: self.layout, life: PhantomData }
    }

    pub(crate) fn layout(&self) -> &RowLayout {
        &self.layout
    }

    /// Returns a pointer to the first element of row `r`.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> *const E {
        debug_assert!(r < self.layout.rows());
        self.ptr.wrapping_offset(self.layout.offset(r))
    }

    /// Returns some columns of every row.
    pub(crate) fn columns(&self, first: usize, width: usize) -> Self {
        let layout = self.layout.columns(first, width);
        Self { ptr: self.ptr.wrapping_add(first), layout, life: PhantomData }
    }
}

impl<'a, E> RowGridMut<'a, E> {
    /// Returns the rows inside `data`; strides are (token, block). Panics if rows overlap.
    pub(crate) fn new(data: &'a mut [E], n: usize, a: usize, strides: (usize, usize), width: usize) -> Self {
        let layout = RowLayout::of_slice(data.len(), n, a, strides, width);
        let (low, high) = (strides.0.min(strides.1), strides.0.max(strides.1));
        let inner = if strides.0 <= strides.1 { n } else { a };
        let disjoint = (n == 1 || a == 1 || (inner - 1) * low + width <= high)
            && (n <= 1 || strides.0 >= width)
            && (a <= 1 || strides.1 >= width);
        assert!(disjoint || layout.rows() <= 1, "rows of {layout:?} overlap");
        Self { ptr: data.as_mut_ptr(), layout, life: PhantomData }
    }

    /// Returns the n × a rows of an n × (a·width) matrix.
    pub(crate) fn of_view(mut view: ArrayViewMut2<'a, E>, a: usize) -> Self {
        let layout = RowLayout::of_matrix(view.shape(), view.strides(), a);
        Self { ptr: view.as_mut_ptr(), layout, life: PhantomData }
    }

    /// Returns the same rows as elements of a type of equal size.
    #[cfg(target_arch = "x86_64")] // for the products in pairs
    pub(super) fn cast<F>(&mut self) -> RowGridMut<'_, F> {
        assert_eq!(size_of::<E>(), size_of::<F>());
        RowGridMut { ptr: self.ptr.cast(), layout: self.layout, life: PhantomData }
    }

    pub(crate) fn layout(&self) -> &RowLayout {
        &self.layout
    }

    /// Returns a pointer to the first element of row `r`.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> *mut E {
        debug_assert!(r < self.layout.rows());
        self.ptr.wrapping_offset(self.layout.offset(r))
    }

    /// Borrows some columns of every row.
    pub(crate) fn columns(&mut self, first: usize, width: usize) -> RowGridMut<'_, E> {
        let layout = self.layout.columns(first, width);
        RowGridMut { ptr: self.ptr.wrapping_add(first), layout, life: PhantomData }
    }

    /// Borrows some of the tokens.
    pub(crate) fn tokens(&mut self, first: usize, n: usize) -> RowGridMut<'_, E> {
        let layout = self.layout.tokens(first, n);
        let ptr = self.ptr.wrapping_offset(first as isize * layout.n_stride);
        RowGridMut { ptr, layout, life: PhantomData }
    }
}
