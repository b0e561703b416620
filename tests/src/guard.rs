//! Buffers with guard zones: whatever a kernel writes outside the area that
//! it was given is found.

use kron_core::Element;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, ShapeBuilder};

/// Elements before and after the body; odd, so that the body is not aligned to a vector.
const ZONE: usize = 67;

/// Small in every dtype, so that a sum which is added to it shows.
const CANARY: u8 = 0x3a;

/// A NaN in every dtype, so that a read of it shows.
const POISON: u8 = 0xff;

/// A flat buffer between two guard zones.
#[derive(Clone, Debug)]
pub struct Guarded<T> {
    data: Vec<T>,
}

impl<T: bytemuck::Pod> Guarded<T> {
    /// `len` NaNs.
    pub fn poisoned(len: usize) -> Self {
        let mut buffer = Self { data: vec![T::zeroed(); len + 2 * ZONE] };
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

    /// What lies between the zones.
    pub fn body(&self) -> &[T] {
        &self.data[ZONE..self.data.len() - ZONE]
    }

    /// What lies between the zones.
    pub fn body_mut(&mut self) -> &mut [T] {
        let end = self.data.len() - ZONE;
        &mut self.data[ZONE..end]
    }

    /// Every byte, zones included: two snapshots are equal when nothing was written between them.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.data)
    }

    /// That neither zone was written.
    ///
    /// # Panics
    /// One was.
    pub fn assert_intact(&self, what: &str) {
        let (front, back) = (&self.data[..ZONE], &self.data[self.data.len() - ZONE..]);
        assert!(is(front, CANARY), "written before the start of {what}");
        assert!(is(back, CANARY), "written beyond the end of {what}");
    }
}

fn is<T: bytemuck::Pod>(zone: &[T], byte: u8) -> bool {
    bytemuck::cast_slice::<T, u8>(zone).iter().all(|&b| b == byte)
}

/// A matrix of activations whose row stride exceeds its width by a guard.
#[derive(Clone, Debug)]
pub struct Matrix<E> {
    buffer: Guarded<E>,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<E: Element> Matrix<E> {
    /// rows × cols NaNs, to be overwritten; the padding is not to be.
    pub fn poisoned(rows: usize, cols: usize, pad: usize) -> Self {
        let stride = cols + pad;
        let len = if rows == 0 { 0 } else { (rows - 1) * stride + cols };
        let mut matrix = Self { buffer: Guarded::poisoned(len), rows, cols, stride };
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
    ///
    /// # Panics
    /// Never: the buffer was sized for it.
    pub fn view(&self) -> ArrayView2<'_, E> {
        ArrayView2::from_shape(self.layout(), self.buffer.body()).expect("the buffer was sized for it")
    }

    /// The matrix.
    ///
    /// # Panics
    /// Never: the buffer was sized for it.
    pub fn view_mut(&mut self) -> ArrayViewMut2<'_, E> {
        ArrayViewMut2::from_shape(self.layout(), self.buffer.body_mut()).expect("the buffer was sized for it")
    }

    /// Every byte, padding and zones included.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.bytes()
    }

    /// That neither zones nor padding were written.
    ///
    /// # Panics
    /// One was.
    pub fn assert_intact(&self, what: &str) {
        self.buffer.assert_intact(what);
        for (row, padding) in self.buffer.body().chunks(self.stride).enumerate() {
            assert!(is(&padding[self.cols..], CANARY), "written into the padding of {what} at row {row}");
        }
    }

    /// ndarray takes no strides other than its own for a matrix without rows.
    fn layout(&self) -> ndarray::StrideShape<ndarray::Ix2> {
        let dim = (self.rows, self.cols);
        if self.rows == 0 { dim.into() } else { dim.strides((self.stride, 1)) }
    }

    fn fill_padding(&mut self, byte: u8) {
        let cols = self.cols;
        for row in self.buffer.body_mut().chunks_mut(self.stride) {
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
