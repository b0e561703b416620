//! Random activations and the ring of buffers that keeps them out of the cache.

use kron_core::Element;
use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;

/// Numbers drawn from one generator: what makes data independent of the thread count.
const CHUNK: usize = 1 << 14;

/// rows × cols numbers uniform in (−k, k), from `seed`.
pub fn uniform<E: Element>(rows: usize, cols: usize, k: f32, seed: u64) -> Array2<E> {
    let mut data = vec![E::from_f32(0.0); rows * cols];
    let fill = |(i, chunk): (usize, &mut [E])| {
        let mut rng = Pcg64Mcg::seed_from_u64(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ i as u64);
        chunk.iter_mut().for_each(|v| *v = E::from_f32(k * (2.0 * rng.random::<f32>() - 1.0)));
    };
    if data.len() <= CHUNK {
        fill((0, &mut data));
    } else {
        data.par_chunks_mut(CHUNK).enumerate().for_each(fill);
    }
    // The length is rows·cols by construction.
    Array2::from_shape_vec((rows, cols), data).expect("rows × cols numbers")
}

/// What one layer's forward and backward read and write.
#[derive(Clone, Debug)]
pub struct Set<E> {
    /// X, n × d_in.
    pub x: Array2<E>,
    /// Y, n × d_out; adapters add to it.
    pub y: Array2<E>,
    /// dY, n × d_out.
    pub dy: Array2<E>,
    /// dX, n × d_in; every engine adds to it.
    pub dx: Array2<E>,
    /// T, kept from forward for backward; as long as the longest engine's.
    pub t: Vec<f32>,
}

impl<E: Element> Set<E> {
    /// Numbers of unit variance, dY and dX smaller as gradients are.
    pub fn random(rows: usize, d_out: usize, d_in: usize, t_len: usize, seed: u64) -> Self {
        let unit = 3f32.sqrt();
        Self {
            x: uniform(rows, d_in, unit, 4 * seed),
            y: uniform(rows, d_out, unit, 4 * seed + 1),
            dy: uniform(rows, d_out, 0.1 * unit, 4 * seed + 2),
            dx: uniform(rows, d_in, 0.1 * unit, 4 * seed + 3),
            t: vec![0.0; t_len],
        }
    }

    /// A copy of the first `rows` rows.
    pub fn head(&self, rows: usize) -> Self {
        let head = |m: &Array2<E>| m.slice(ndarray::s![..rows, ..]).to_owned();
        Self { x: head(&self.x), y: head(&self.y), dy: head(&self.dy), dx: head(&self.dx), t: self.t.clone() }
    }

    /// Tokens.
    pub fn rows(&self) -> usize {
        self.x.nrows()
    }
}

/// The most sets of a ring: small layers stay in cache in a real network too.
const MOST_SETS: usize = 4096;

/// How many sets make X and Y together `bytes`, at least two.
pub fn sets_for(bytes: usize, rows: usize, d_out: usize, d_in: usize, element: usize) -> usize {
    bytes.div_ceil(rows * (d_out + d_in) * element).clamp(2, MOST_SETS)
}

/// A matrix as one slice: these are made contiguous and stay so.
pub fn flat<E>(m: &Array2<E>) -> &[E] {
    m.as_slice().expect("standard layout")
}

/// A matrix as one slice to write.
pub fn flat_mut<E>(m: &mut Array2<E>) -> &mut [E] {
    m.as_slice_mut().expect("standard layout")
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_ring_is_larger_than_it_was_asked_to_be() {
        assert_eq!(sets_for(64 << 20, 2048, 4096, 4096, 4), 2);
        assert_eq!(sets_for(64 << 20, 1, 4096, 4096, 4), 2048);
        assert_eq!(sets_for(64 << 20, 1, 64, 64, 4), MOST_SETS);
    }
}
