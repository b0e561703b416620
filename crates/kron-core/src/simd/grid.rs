//! [`Grid`]: the reshape identity as an address. Row (n, a) of a grid starts
//! at n·n_stride + a·a_stride; X as n × a_in × c_in and as n × d_in are the
//! same grid, so no reshape ever copies.

use std::marker::PhantomData;

use ndarray::{ArrayView2, ArrayViewMut2};

/// Where the rows lie, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Tokens.
    pub n: usize,
    /// Blocks of a token.
    pub a: usize,
    /// From one token to the next.
    pub n_stride: isize,
    /// From one block to the next.
    pub a_stride: isize,
    /// Elements of one row.
    pub width: usize,
}

impl Layout {
    /// Rows, in the order (0, 0), (0, 1), …
    pub(crate) fn rows(&self) -> usize {
        self.n * self.a
    }

    /// The offset of flat row `r`.
    #[inline(always)]
    fn offset(&self, r: usize) -> isize {
        let (n, a) = if self.a == 1 { (r, 0) } else { (r / self.a, r % self.a) };
        n as isize * self.n_stride + a as isize * self.a_stride
    }

    /// Elements of a slice that starts with row (0, 0) and holds every row.
    fn extent(&self) -> usize {
        if self.rows() == 0 || self.width == 0 {
            return 0;
        }
        (self.n - 1) * self.n_stride as usize + (self.a - 1) * self.a_stride as usize + self.width
    }

    fn of_slice(len: usize, n: usize, a: usize, strides: (usize, usize), width: usize) -> Self {
        let layout = Layout { n, a, n_stride: strides.0 as isize, a_stride: strides.1 as isize, width };
        assert!(layout.extent() <= len, "a grid {layout:?} over {len} elements");
        layout
    }

    /// A matrix of n × (a·width) with unit inner stride.
    fn of_matrix(shape: &[usize], strides: &[isize], a: usize) -> Self {
        assert!(shape[1].is_multiple_of(a) && (strides[1] == 1 || shape[1] == 1 || shape[0] == 0));
        let width = shape[1] / a;
        Layout { n: shape[0], a, n_stride: strides[0], a_stride: width as isize, width }
    }

    fn columns(&self, first: usize, width: usize) -> Self {
        assert!(first + width <= self.width, "columns {first} + {width} of {self:?}");
        Layout { width, ..*self }
    }

    fn tokens(&self, first: usize, n: usize) -> Self {
        assert!(first + n <= self.n, "tokens {first} + {n} of {self:?}");
        Layout { n, ..*self }
    }
}

/// Rows to read.
pub(crate) struct Grid<'a, E> {
    ptr: *const E,
    layout: Layout,
    life: PhantomData<&'a [E]>,
}

/// Rows to write. No two rows of a grid overlap.
pub(crate) struct GridMut<'a, E> {
    ptr: *mut E,
    layout: Layout,
    life: PhantomData<&'a mut [E]>,
}

impl<E> Clone for Grid<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for Grid<'_, E> {}

// SAFETY: a Grid stands for a shared slice.
unsafe impl<E: Sync> Send for Grid<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Sync> Sync for Grid<'_, E> {}

impl<'a, E> Grid<'a, E> {
    /// Rows inside `data`; strides are (token, block).
    pub(crate) fn new(data: &'a [E], n: usize, a: usize, strides: (usize, usize), width: usize) -> Self {
        let layout = Layout::of_slice(data.len(), n, a, strides, width);
        Self { ptr: data.as_ptr(), layout, life: PhantomData }
    }

    /// n × (a·width) as n × a rows.
    pub(crate) fn of_view(view: ArrayView2<'a, E>, a: usize) -> Self {
        let layout = Layout::of_matrix(view.shape(), view.strides(), a);
        Self { ptr: view.as_ptr(), layout, life: PhantomData }
    }

    /// The same rows under another name of their element type.
    pub(super) fn cast<F>(self) -> Grid<'a, F> {
        assert_eq!(size_of::<E>(), size_of::<F>());
        Grid { ptr: self.ptr.cast(), layout: self.layout, life: PhantomData }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The first element of flat row `r`.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> *const E {
        debug_assert!(r < self.layout.rows());
        self.ptr.wrapping_offset(self.layout.offset(r))
    }

    /// The same rows, some of their columns.
    pub(crate) fn columns(&self, first: usize, width: usize) -> Self {
        let layout = self.layout.columns(first, width);
        Self { ptr: self.ptr.wrapping_add(first), layout, life: PhantomData }
    }
}

impl<'a, E> GridMut<'a, E> {
    /// Rows inside `data`; strides are (token, block), and far enough apart
    /// that rows do not overlap.
    pub(crate) fn new(data: &'a mut [E], n: usize, a: usize, strides: (usize, usize), width: usize) -> Self {
        let layout = Layout::of_slice(data.len(), n, a, strides, width);
        let (low, high) = (strides.0.min(strides.1), strides.0.max(strides.1));
        let inner = if strides.0 <= strides.1 { n } else { a };
        let apart = (n == 1 || a == 1 || (inner - 1) * low + width <= high)
            && (n <= 1 || strides.0 >= width)
            && (a <= 1 || strides.1 >= width);
        assert!(apart || layout.rows() <= 1, "rows of {layout:?} overlap");
        Self { ptr: data.as_mut_ptr(), layout, life: PhantomData }
    }

    /// n × (a·width) as n × a rows.
    pub(crate) fn of_view(mut view: ArrayViewMut2<'a, E>, a: usize) -> Self {
        let layout = Layout::of_matrix(view.shape(), view.strides(), a);
        Self { ptr: view.as_mut_ptr(), layout, life: PhantomData }
    }

    /// The same rows under another name of their element type.
    pub(super) fn cast<F>(&mut self) -> GridMut<'_, F> {
        assert_eq!(size_of::<E>(), size_of::<F>());
        GridMut { ptr: self.ptr.cast(), layout: self.layout, life: PhantomData }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The first element of flat row `r`.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> *mut E {
        debug_assert!(r < self.layout.rows());
        self.ptr.wrapping_offset(self.layout.offset(r))
    }

    /// Borrows the same rows, some of their columns.
    pub(crate) fn columns(&mut self, first: usize, width: usize) -> GridMut<'_, E> {
        let layout = self.layout.columns(first, width);
        GridMut { ptr: self.ptr.wrapping_add(first), layout, life: PhantomData }
    }

    /// Borrows some of the tokens.
    pub(crate) fn tokens(&mut self, first: usize, n: usize) -> GridMut<'_, E> {
        let layout = self.layout.tokens(first, n);
        let ptr = self.ptr.wrapping_offset(first as isize * layout.n_stride);
        GridMut { ptr, layout, life: PhantomData }
    }
}
