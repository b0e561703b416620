//! [`RowGrid`]: a matrix of n tokens × a blocks, seen as n·a rows.
//!
//! Row (n, a) starts at n·n_stride + a·a_stride. X as n × a_in × c_in and as
//! n × d_in is the same grid, so reshaping never copies. A grid over some tokens of
//! a matrix has their numbers beside it, and row (n, a) then starts at tokens\[n\]·n_stride.

use std::marker::PhantomData;

use ndarray::{ArrayView2, ArrayViewMut2};

use super::order::RowOrder;

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

    /// Returns true if all rows are equally far apart, as in a dense matrix.
    #[inline(always)]
    fn is_even(&self) -> bool {
        self.n == 1 || self.n_stride == self.a as isize * self.a_stride
    }

    /// Offset of row `r` in that order, over the tokens of a table where there is one.
    #[inline(always)]
    fn offset(&self, r: usize, tokens: Option<&[u32]>) -> isize {
        if tokens.is_none() && self.is_even() {
            return r as isize * self.a_stride;
        }
        let (n, a) = if self.a == 1 { (r, 0) } else { (r / self.a, r % self.a) };
        let n = tokens.map_or(n, |tokens| tokens[n] as usize);
        n as isize * self.n_stride + a as isize * self.a_stride
    }

    /// Distance of [`RowGrid::ahead`] in elements.
    #[inline(always)]
    fn ahead<const M: usize>(&self, r: usize, tokens: Option<&[u32]>) -> isize {
        if self.n == 1 && self.a_stride == self.width as isize {
            // As a rule the next token follows; memory takes longer to answer than a kernel takes for a few rows.
            return self.n_stride;
        }
        let first = self.offset(r, tokens);
        if r + 2 * M >= self.rows() {
            return self.offset(0, tokens) + self.width as isize - first;
        }
        let ahead = self.offset(r + 2 * M, tokens) - first;
        let last = (r + 3 * M).min(self.rows()) - 1;
        let even = tokens.is_none() || self.offset(last, tokens) - self.offset(last - 2 * M, tokens) == ahead;
        if even { ahead } else { 0 }
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

    /// Layout of the rows of one block each, divided into `a` blocks.
    fn blocks(&self, a: usize) -> Self {
        assert!(self.a == 1 && self.width.is_multiple_of(a), "{a} blocks of {self:?}");
        let width = self.width / a;
        RowLayout { a, a_stride: width as isize, width, ..*self }
    }

    fn columns(&self, first: usize, width: usize) -> Self {
        assert!(first + width <= self.width, "columns {first} + {width} of {self:?}");
        RowLayout { width, ..*self }
    }

    /// Layout of some tokens, and the distance of the first where no table says it.
    fn tokens(&self, first: usize, n: usize, table: Option<&[u32]>) -> (Self, isize) {
        assert!(first + n <= self.n, "tokens {first} + {n} of {self:?}");
        (RowLayout { n, ..*self }, if table.is_some() { 0 } else { first as isize * self.n_stride })
    }
}

/// Returns the first token of a table whose tokens follow each other.
fn consecutive(tokens: Option<&[u32]>) -> Option<u32> {
    let tokens = tokens?;
    let first = *tokens.first()?;
    (first..).zip(tokens).all(|(want, &token)| want == token).then_some(first)
}

/// Rows that are read.
pub(crate) struct RowGrid<'a, E> {
    ptr: *const E,
    layout: RowLayout,
    /// Numbers of the tokens; `None` for 0, 1, …
    tokens: Option<&'a [u32]>,
    life: PhantomData<&'a [E]>,
}

/// Rows that are written. No two rows of a grid overlap.
pub(crate) struct RowGridMut<'a, E> {
    ptr: *mut E,
    layout: RowLayout,
    /// Numbers of the tokens, each once; `None` for 0, 1, …
    tokens: Option<&'a [u32]>,
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
// SAFETY: a RowGridMut stands for rows of a slice that it alone borrows.
unsafe impl<E: Send> Send for RowGridMut<'_, E> {}

impl<'a, E> RowGrid<'a, E> {
    /// Returns the rows inside `data`; strides are (token, block).
    pub(crate) fn new(data: &'a [E], n: usize, a: usize, strides: (usize, usize), width: usize) -> Self {
        let layout = RowLayout::of_slice(data.len(), n, a, strides, width);
        Self { ptr: data.as_ptr(), layout, tokens: None, life: PhantomData }
    }

    /// Returns the n × a rows of an n × (a·width) matrix.
    pub(crate) fn of_view(view: ArrayView2<'a, E>, a: usize) -> Self {
        let layout = RowLayout::of_matrix(view.shape(), view.strides(), a);
        Self { ptr: view.as_ptr(), layout, tokens: None, life: PhantomData }
    }

    /// Returns rows of a matrix in the order of a table, one block each.
    pub(crate) fn of_order(view: ArrayView2<'a, E>, order: RowOrder<'a>) -> Self {
        let layout = RowLayout::of_matrix(view.shape(), view.strides(), 1);
        let tokens = order.rows_of(layout.n);
        Self {
            ptr: view.as_ptr(),
            layout: RowLayout { n: tokens.len(), ..layout },
            tokens: Some(tokens),
            life: PhantomData,
        }
    }

    /// Returns rows of one block each as rows of `a` blocks.
    pub(crate) fn blocks(self, a: usize) -> Self {
        Self { layout: self.layout.blocks(a), ..self }
    }

    /// Returns some of the tokens.
    pub(crate) fn tokens(&self, first: usize, n: usize) -> Self {
        let (layout, skip) = self.layout.tokens(first, n, self.tokens);
        let tokens = self.tokens.map(|tokens| &tokens[first..first + n]);
        Self { ptr: self.ptr.wrapping_offset(skip), layout, tokens, life: PhantomData }
    }

    /// Returns the same rows, without a table if their tokens follow each other.
    pub(crate) fn compact(self) -> Self {
        let Some(first) = consecutive(self.tokens) else { return self };
        let ptr = self.ptr.wrapping_offset(first as isize * self.layout.n_stride);
        Self { ptr, tokens: None, ..self }
    }

    /// Returns the elements of row `r`.
    pub(crate) fn slice(&self, r: usize) -> &'a [E] {
        assert!(r < self.layout.rows());
        // SAFETY: every row of a grid is `width` elements of what it borrows.
        unsafe { std::slice::from_raw_parts(self.row(r), self.layout.width) }
    }

    /// Returns the same rows as elements of a type of equal size.
    #[cfg(target_arch = "x86_64")] // for the products in pairs
    pub(super) fn cast<F>(self) -> RowGrid<'a, F> {
        assert_eq!(size_of::<E>(), size_of::<F>());
        RowGrid { ptr: self.ptr.cast(), layout: self.layout, tokens: self.tokens, life: PhantomData }
    }

    pub(crate) fn layout(&self) -> &RowLayout {
        &self.layout
    }

    /// Number of token `i` in its matrix, if the grid's first token is `first` where no table says it.
    pub(crate) fn number(&self, first: usize, i: usize) -> usize {
        self.tokens.map_or(first + i, |tokens| tokens[i] as usize)
    }

    /// Numbers of the tokens, where a table chooses them.
    pub(super) fn table(&self) -> Option<&'a [u32]> {
        self.tokens
    }

    /// Bytes from the `M` rows from `r` on to those 2·`M` further, which a kernel fetches; from the last ones, to
    /// the columns behind this grid's; in a grid of one token, to the same rows of the next. Returns 0 where a table puts rows at other distances.
    #[inline(always)]
    pub(super) fn ahead<const M: usize>(&self, r: usize) -> isize {
        self.layout.ahead::<M>(r, self.tokens) * size_of::<E>() as isize
    }

    /// Returns a pointer to the first element of row `r`.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> *const E {
        debug_assert!(r < self.layout.rows());
        self.ptr.wrapping_offset(self.layout.offset(r, self.tokens))
    }

    /// Returns some columns of every row.
    pub(crate) fn columns(&self, first: usize, width: usize) -> Self {
        let layout = self.layout.columns(first, width);
        Self { ptr: self.ptr.wrapping_add(first), layout, tokens: self.tokens, life: PhantomData }
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
        Self { ptr: data.as_mut_ptr(), layout, tokens: None, life: PhantomData }
    }

    /// Returns the n × a rows of an n × (a·width) matrix.
    pub(crate) fn of_view(mut view: ArrayViewMut2<'a, E>, a: usize) -> Self {
        let layout = RowLayout::of_matrix(view.shape(), view.strides(), a);
        Self { ptr: view.as_mut_ptr(), layout, tokens: None, life: PhantomData }
    }

    /// Returns rows of a matrix in the order of a table, one block each.
    pub(crate) fn of_order(mut view: ArrayViewMut2<'a, E>, order: RowOrder<'a>) -> Self {
        let layout = RowLayout::of_matrix(view.shape(), view.strides(), 1);
        let tokens = order.rows_of(layout.n);
        Self {
            ptr: view.as_mut_ptr(),
            layout: RowLayout { n: tokens.len(), ..layout },
            tokens: Some(tokens),
            life: PhantomData,
        }
    }

    /// Returns rows of one block each as rows of `a` blocks.
    pub(crate) fn blocks(&mut self, a: usize) -> RowGridMut<'_, E> {
        RowGridMut { ptr: self.ptr, layout: self.layout.blocks(a), tokens: self.tokens, life: PhantomData }
    }

    /// Number of token `i` in its matrix, if the grid's first token is `first` where no table says it.
    pub(crate) fn number(&self, first: usize, i: usize) -> usize {
        self.tokens.map_or(first + i, |tokens| tokens[i] as usize)
    }

    /// Cuts off the first `n` tokens.
    pub(crate) fn split_off_front(&mut self, n: usize) -> Self {
        let (rest, skip) = self.layout.tokens(n, self.layout.n - n, self.tokens);
        let tokens = self.tokens.map(|tokens| tokens.split_at(n));
        let front =
            Self { layout: RowLayout { n, ..self.layout }, tokens: tokens.map(|(front, _)| front), ..*self };
        *self = Self {
            ptr: self.ptr.wrapping_offset(skip),
            layout: rest,
            tokens: tokens.map(|(_, rest)| rest),
            life: PhantomData,
        };
        front
    }

    /// Returns the same rows, without a table if their tokens follow each other.
    pub(crate) fn compact(self) -> Self {
        let Some(first) = consecutive(self.tokens) else { return self };
        let ptr = self.ptr.wrapping_offset(first as isize * self.layout.n_stride);
        Self { ptr, tokens: None, ..self }
    }

    /// Borrows the elements of row `r`.
    pub(crate) fn slice(&mut self, r: usize) -> &mut [E] {
        assert!(r < self.layout.rows());
        // SAFETY: every row of a grid is `width` elements of what it alone borrows, and overlaps no other row.
        unsafe { std::slice::from_raw_parts_mut(self.row(r), self.layout.width) }
    }

    /// Returns the same rows as elements of a type of equal size.
    #[cfg(target_arch = "x86_64")] // for the products in pairs
    pub(super) fn cast<F>(&mut self) -> RowGridMut<'_, F> {
        assert_eq!(size_of::<E>(), size_of::<F>());
        RowGridMut { ptr: self.ptr.cast(), layout: self.layout, tokens: self.tokens, life: PhantomData }
    }

    pub(crate) fn layout(&self) -> &RowLayout {
        &self.layout
    }

    /// Bytes from the `M` rows from `r` on to those 2·`M` further, which a kernel fetches; from the last ones, to
    /// the columns behind this grid's; in a grid of one token, to the same rows of the next. Returns 0 where a table puts rows at other distances.
    #[inline(always)]
    pub(super) fn ahead<const M: usize>(&self, r: usize) -> isize {
        self.layout.ahead::<M>(r, self.tokens) * size_of::<E>() as isize
    }

    /// Returns a pointer to the first element of row `r`.
    #[inline(always)]
    pub(super) fn row(&self, r: usize) -> *mut E {
        debug_assert!(r < self.layout.rows());
        self.ptr.wrapping_offset(self.layout.offset(r, self.tokens))
    }

    /// Borrows some columns of every row.
    pub(crate) fn columns(&mut self, first: usize, width: usize) -> RowGridMut<'_, E> {
        let layout = self.layout.columns(first, width);
        RowGridMut { ptr: self.ptr.wrapping_add(first), layout, tokens: self.tokens, life: PhantomData }
    }

    /// Borrows some of the tokens.
    pub(crate) fn tokens(&mut self, first: usize, n: usize) -> RowGridMut<'_, E> {
        let (layout, skip) = self.layout.tokens(first, n, self.tokens);
        let tokens = self.tokens.map(|tokens| &tokens[first..first + n]);
        RowGridMut { ptr: self.ptr.wrapping_offset(skip), layout, tokens, life: PhantomData }
    }
}
