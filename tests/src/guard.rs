//! Buffers with guard zones: whatever a kernel writes outside the area that
//! it was given is found.

use kron_core::Element;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, ShapeBuilder};

/// Elements before and after the body; odd, so that the body is not aligned to a vector.
const ZONE: usize = 67;

/// Alignment of [`Guarded::aligned`] in bytes: the widest access of a GPU.
pub const ALIGNMENT: usize = 16;

/// Small in every dtype, so that a sum which is added to it shows.
const CANARY: u8 = 0x3a;

/// A NaN in every dtype, so that a read of it shows.
const POISON: u8 = 0xff;

/// A flat buffer between two guard zones.
#[derive(Clone, Debug)]
pub struct Guarded<T> {
    data: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: bytemuck::Pod> Guarded<T> {
    /// `len` NaNs.
    pub fn poisoned(len: usize) -> Self {
        Self::at(ZONE, vec![T::zeroed(); len + 2 * ZONE], len)
    }

    fn at(start: usize, data: Vec<T>, len: usize) -> Self {
        let mut buffer = Self { data, start, len };
        bytemuck::cast_slice_mut::<T, u8>(&mut buffer.data).fill(CANARY);
        bytemuck::cast_slice_mut::<T, u8>(buffer.body_mut()).fill(POISON);
        buffer
    }

    /// A copy of `body`.
    pub fn of(body: &[T]) -> Self {
        let mut buffer = Self::poisoned(body.len());
        buffer.body_mut().copy_from_slice(body);
        buffer
    }

    /// The same body between new zones, on a boundary of [`ALIGNMENT`] bytes.
    pub fn aligned(&self) -> Self {
        let step = ALIGNMENT / size_of::<T>();
        let data = vec![T::zeroed(); self.len + 2 * ZONE + step];
        let start = ZONE + data[ZONE..].as_ptr().align_offset(ALIGNMENT);
        let mut buffer = Self::at(start, data, self.len);
        buffer.body_mut().copy_from_slice(self.body());
        buffer
    }

    /// Zones and body, cut in front such that the body lies on a boundary of
    /// [`ALIGNMENT`] bytes from the first element, and where it lies.
    pub fn with_zones(&mut self) -> (&mut [T], std::ops::Range<usize>) {
        let cut = self.start % (ALIGNMENT / size_of::<T>());
        (&mut self.data[cut..], self.start - cut..self.start - cut + self.len)
    }

    /// The elements between the zones.
    pub fn body(&self) -> &[T] {
        &self.data[self.start..][..self.len]
    }

    /// The elements between the zones.
    pub fn body_mut(&mut self) -> &mut [T] {
        &mut self.data[self.start..][..self.len]
    }

    /// Every byte, zones included: two snapshots are equal when nothing was written between them.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.data)
    }

    /// Panics if either zone was written.
    ///
    /// # Panics
    /// One was.
    pub fn assert_intact(&self, what: &str) {
        let (front, back) = (&self.data[..self.start], &self.data[self.start + self.len..]);
        assert!(is(front, CANARY), "written before the start of {what}");
        assert!(is(back, CANARY), "written beyond the end of {what}");
    }
}

fn is<T: bytemuck::Pod>(zone: &[T], byte: u8) -> bool {
    bytemuck::cast_slice::<T, u8>(zone).iter().all(|&b| b == byte)
}

/// Positions of a matrix's elements in its buffer.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Number of rows.
    pub rows: usize,
    /// Elements of a row.
    pub cols: usize,
    /// Elements from one row's start to the next one's.
    pub stride: usize,
}

impl Layout {
    /// ndarray takes no strides other than its own for a matrix without rows.
    fn shape(self) -> ndarray::StrideShape<ndarray::Ix2> {
        let dim = (self.rows, self.cols);
        if self.rows == 0 { dim.into() } else { dim.strides((self.stride, 1)) }
    }

    /// The matrix in `body`.
    ///
    /// # Panics
    /// A body that is too short.
    pub fn view<T>(self, body: &[T]) -> ArrayView2<'_, T> {
        ArrayView2::from_shape(self.shape(), body).expect("the buffer was sized for it")
    }

    /// The matrix in `body`, to write.
    ///
    /// # Panics
    /// A body that is too short.
    pub fn view_mut<T>(self, body: &mut [T]) -> ArrayViewMut2<'_, T> {
        ArrayViewMut2::from_shape(self.shape(), body).expect("the buffer was sized for it")
    }
}

/// A matrix of activations whose row stride exceeds its width by a guard.
#[derive(Clone, Debug)]
pub struct Matrix<E> {
    /// The elements, between guard zones.
    pub buffer: Guarded<E>,
    /// Their positions.
    pub layout: Layout,
}

impl<E: Element> Matrix<E> {
    /// rows × cols NaNs, to be overwritten; the padding is not to be.
    pub fn poisoned(rows: usize, cols: usize, pad: usize) -> Self {
        let stride = cols + pad;
        let len = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        let mut matrix = Self { buffer: Guarded::poisoned(len), layout: Layout { rows, cols, stride } };
        matrix.fill_padding(CANARY);
        matrix
    }

    /// A copy to write into; the padding is not to be.
    pub fn output(values: &Array2<E>, pad: usize) -> Self {
        let mut matrix = Self::poisoned(values.nrows(), values.ncols(), pad);
        matrix.view_mut().assign(values);
        matrix
    }

    /// A copy to read; its padding is NaN.
    pub fn input(values: &Array2<E>, pad: usize) -> Self {
        let mut matrix = Self::output(values, pad);
        matrix.fill_padding(POISON);
        matrix
    }

    /// The matrix.
    pub fn view(&self) -> ArrayView2<'_, E> {
        self.layout.view(self.buffer.body())
    }

    /// The matrix, to write.
    pub fn view_mut(&mut self) -> ArrayViewMut2<'_, E> {
        self.layout.view_mut(self.buffer.body_mut())
    }

    /// Every byte, padding and zones included.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// Panics if a zone or padding was written.
    ///
    /// # Panics
    /// One was.
    pub fn assert_intact(&self, what: &str) {
        self.buffer.assert_intact(what);
        for (row, padding) in self.buffer.body().chunks(self.layout.stride).enumerate() {
            assert!(
                is(&padding[self.layout.cols..], CANARY),
                "written into the padding of {what} at row {row}"
            );
        }
    }

    fn fill_padding(&mut self, byte: u8) {
        let Layout { cols, stride, .. } = self.layout;
        for row in self.buffer.body_mut().chunks_mut(stride) {
            bytemuck::cast_slice_mut::<E, u8>(&mut row[cols..]).fill(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn panics(f: impl FnOnce()) -> bool {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
    }

    #[test]
    fn a_stray_write_is_found() {
        let intact = Guarded::<f32>::poisoned(5);
        intact.assert_intact("buffer");
        for at in [0, ZONE - 1, ZONE + 5, ZONE + 5 + ZONE - 1] {
            let mut hurt = intact.clone();
            hurt.data[at] += 1e-3;
            assert!(panics(|| hurt.assert_intact("buffer")), "element {at}");
        }
    }

    #[test]
    fn an_aligned_copy_is_aligned_and_guarded() {
        for len in [0, 1, 5, 64] {
            let mut moved = Guarded::of(&vec![bf16::ONE; len]).aligned();
            assert!(
                moved.body().as_ptr().addr().is_multiple_of(ALIGNMENT)
                    && moved.body() == vec![bf16::ONE; len]
            );
            moved.assert_intact("buffer");
            let (all, body) = moved.with_zones();
            assert!((body.start * size_of::<bf16>()).is_multiple_of(ALIGNMENT) && body.len() == len);
            assert!(all[body.clone()].iter().all(|&v| v == bf16::ONE));
            for at in [body.start - 1, body.end] {
                let mut hurt = moved.clone();
                hurt.with_zones().0[at] = bf16::ONE;
                assert!(panics(|| hurt.assert_intact("buffer")), "element {at} of {len}");
            }
        }
    }

    #[test]
    fn a_stray_write_into_the_padding_is_found() {
        let intact = Matrix::<bf16>::poisoned(3, 4, 2);
        intact.assert_intact("matrix");
        assert!(intact.view().iter().all(|v| v.is_nan()));
        let mut hurt = intact.clone();
        hurt.buffer.body_mut()[4] = bf16::ONE;
        assert!(panics(|| hurt.assert_intact("matrix")));
    }

    #[test]
    fn views_hold_the_values() {
        let values = Array2::from_shape_fn((3, 4), |(i, j)| (10 * i + j) as f32);
        assert_eq!(Matrix::input(&values, 5).view(), values);
        assert_eq!(Matrix::output(&values, 0).view(), values);
        assert_eq!(Matrix::<f32>::poisoned(0, 4, 3).view().dim(), (0, 4));
    }
}
