//! Random activations and the ring of buffers that keeps them out of the cache.

use kron_core::{Element, KronShape, LayerDims, Theta};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;

/// Elements drawn from one generator, so that the data do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// Seeds of the frozen weight and of every θ.
const WEIGHT_SEED: u64 = 0x57;
const THETA_SEED: u64 = 0x7468;

/// Returns the frozen weight of a layer, d_out × d_in.
pub fn weight<E: Element>(LayerDims { d_out, d_in }: LayerDims) -> Array2<E> {
    uniform(d_out, d_in, (3.0 / d_in as f32).sqrt(), WEIGHT_SEED)
}

/// Returns the θ of a shape: engines of one adapter solve the same problem.
pub fn theta(shape: KronShape) -> Theta {
    Theta::random(shape, THETA_SEED)
}

/// Returns rows × cols elements uniform in (−k, k), from `seed`.
pub fn uniform<E: Element>(rows: usize, cols: usize, k: f32, seed: u64) -> Array2<E> {
    let mut data = vec![E::from_f32(0.0); rows * cols];
    fill(&mut data, k, seed);
    // The length is rows·cols by construction.
    Array2::from_shape_vec((rows, cols), data).expect("rows × cols elements")
}

fn fill<E: Element>(data: &mut [E], k: f32, seed: u64) {
    let fill = |(i, chunk): (usize, &mut [E])| {
        let mut rng = Pcg64Mcg::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ i as u64);
        chunk.iter_mut().for_each(|v| *v = E::from_f32(k * (2.0 * rng.random::<f32>() - 1.0)));
    };
    if data.len() <= CHUNK {
        fill((0, data));
    } else {
        data.par_chunks_mut(CHUNK).enumerate().for_each(fill);
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// A matrix that starts on a cache line, as PyTorch allocates its tensors. A large
/// `Vec` starts 16 bytes into one, so that every vector of 64 bytes would lie in two.
#[derive(Debug)]
pub struct Matrix<E> {
    data: Vec<E>,
    first: usize,
    dim: (usize, usize),
}

impl<E: Element> Matrix<E> {
    fn zeros(rows: usize, cols: usize) -> Self {
        let data = vec![E::from_f32(0.0); rows * cols + LINE / size_of::<E>()];
        let first = data.as_ptr().align_offset(LINE);
        Self { data, first, dim: (rows, cols) }
    }

    fn uniform(rows: usize, cols: usize, k: f32, seed: u64) -> Self {
        let mut m = Self::zeros(rows, cols);
        fill(m.flat_mut(), k, seed);
        m
    }

    /// Copies the first `rows` rows.
    fn head(&self, rows: usize) -> Self {
        let mut m = Self::zeros(rows, self.dim.1);
        m.flat_mut().copy_from_slice(&self.flat()[..rows * self.dim.1]);
        m
    }

    /// Returns the elements, row by row.
    pub fn flat(&self) -> &[E] {
        &self.data[self.first..][..self.dim.0 * self.dim.1]
    }

    /// Returns the elements to write, row by row.
    pub fn flat_mut(&mut self) -> &mut [E] {
        &mut self.data[self.first..][..self.dim.0 * self.dim.1]
    }

    /// Returns a view of the matrix.
    pub fn view(&self) -> ArrayView2<'_, E> {
        ArrayView2::from_shape(self.dim, self.flat()).expect("rows × cols elements")
    }

    /// Returns a mutable view of the matrix.
    pub fn view_mut(&mut self) -> ArrayViewMut2<'_, E> {
        ArrayViewMut2::from_shape(self.dim, self.flat_mut()).expect("rows × cols elements")
    }
}

impl<E: Element> Clone for Matrix<E> {
    fn clone(&self) -> Self {
        self.head(self.dim.0)
    }
}

/// The activations and gradients that one layer's forward and backward read and write.
#[derive(Clone, Debug)]
pub struct Set<E: Element> {
    /// X, n × d_in.
    pub x: Matrix<E>,
    /// Y, n × d_out; adapters add to it.
    pub y: Matrix<E>,
    /// dY, n × d_out.
    pub dy: Matrix<E>,
    /// dX, n × d_in; every engine adds to it.
    pub dx: Matrix<E>,
    /// T, kept from forward for backward; as long as the longest T of any engine.
    pub t: Vec<f32>,
}

impl<E: Element> Set<E> {
    /// Draws elements of unit variance; dY and dX are smaller, as gradients are.
    pub fn random(rows: usize, layer: LayerDims, t_len: usize, seed: u64) -> Self {
        let LayerDims { d_out, d_in } = layer;
        let unit = 3f32.sqrt();
        Self {
            x: Matrix::uniform(rows, d_in, unit, 4 * seed),
            y: Matrix::uniform(rows, d_out, unit, 4 * seed + 1),
            dy: Matrix::uniform(rows, d_out, 0.1 * unit, 4 * seed + 2),
            dx: Matrix::uniform(rows, d_in, 0.1 * unit, 4 * seed + 3),
            t: vec![0.0; t_len],
        }
    }

    /// Copies the first `rows` rows.
    pub fn head(&self, rows: usize) -> Self {
        Self {
            x: self.x.head(rows),
            y: self.y.head(rows),
            dy: self.dy.head(rows),
            dx: self.dx.head(rows),
            t: self.t.clone(),
        }
    }

    /// Returns the number of tokens.
    pub fn rows(&self) -> usize {
        self.x.dim.0
    }
}

/// Most sets of a ring: small layers stay in cache in a real network too.
const MAX_SETS: usize = 4096;

/// Returns the number of sets whose X and Y together have `bytes`, at least two.
pub fn sets_for(bytes: usize, rows: usize, layer: LayerDims, element: usize) -> usize {
    bytes.div_ceil(rows * (layer.d_out + layer.d_in) * element).clamp(2, MAX_SETS)
}

/// Returns the sets needed for X and Y to total `bytes`; 1 if that exceeds `max_sets`.
pub fn cold_sets(bytes: usize, max_sets: usize, rows: usize, layer: LayerDims, element: usize) -> usize {
    Some(sets_for(bytes, rows, layer, element)).filter(|&sets| sets <= max_sets).unwrap_or(1)
}

/// Returns a weight as one slice: weights are built contiguous and stay so.
pub fn flat<E>(m: &Array2<E>) -> &[E] {
    m.as_slice().expect("standard layout")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(d: usize) -> LayerDims {
        LayerDims { d_out: d, d_in: d }
    }

    #[test]
    fn data_are_random_seeded_and_of_the_asked_size() {
        let a: Array2<f32> = uniform(257, 129, 2.0, 7);
        assert_eq!(a, uniform::<f32>(257, 129, 2.0, 7));
        assert_ne!(a, uniform::<f32>(257, 129, 2.0, 8));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        let var = a.iter().map(|v| v * v).sum::<f32>() / a.len() as f32;
        assert!(mean.abs() < 0.05 && (var - 4.0 / 3.0).abs() < 0.05, "{mean} {var}");
    }

    #[test]
    fn a_matrix_starts_on_a_cache_line_and_so_do_its_copies() {
        let set = Set::<half::bf16>::random(3, LayerDims { d_out: 37, d_in: 41 }, 0, 1);
        for m in [&set.x, &set.x.clone(), &set.head(2).x, &set.dy] {
            assert!(m.flat().as_ptr().addr().is_multiple_of(LINE));
        }
        assert_eq!(set.head(2).y.flat(), &set.y.flat()[..2 * 37]);
    }

    #[test]
    fn the_ring_is_larger_than_it_was_asked_to_be() {
        assert_eq!(sets_for(64 << 20, 2048, square(4096), 4), 2);
        assert_eq!(sets_for(64 << 20, 1, square(4096), 4), 2048);
        assert_eq!(sets_for(64 << 20, 1, square(64), 4), MAX_SETS);
    }

    #[test]
    fn a_sweep_with_cold_caches_rotates_all_that_it_was_asked_to_or_nothing() {
        for (rows, want) in [(1, 1), (16, 1), (256, 1), (512, 32), (1024, 16), (8192, 2), (1 << 20, 2)] {
            let sets = cold_sets(256 << 20, 32, rows, square(4096), 2);
            assert_eq!(sets, want, "{rows} rows");
            assert!(sets == 1 || sets * rows * 8192 * 2 >= 256 << 20, "{rows} rows");
        }
    }
}
