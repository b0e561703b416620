//! `linear`: the frozen layer alone.

use std::sync::Arc;

use kron_core::{Accum, Element, LayerDims, Result};
use ndarray::Array2;

use super::weight::{Products, Weight};
use crate::data::{Set, flat};
use crate::engine::{Engine, EngineConfig};
use crate::gemm::GemmCrate;

pub struct Linear<E> {
    weight: Arc<Array2<E>>,
    products: Products,
}

impl<E: Element> Linear<E> {
    pub fn new(weight: Arc<Array2<E>>, library: GemmCrate, config: &EngineConfig<E>) -> Self {
        let (d_out, d_in) = weight.dim();
        let products = Products::new::<E>(library, config.threads, config.rows, LayerDims { d_out, d_in });
        Self { weight, products }
    }
}

impl<E: Element> Engine<E> for Linear<E> {
    fn scratch_bytes(&self, _: bool) -> usize {
        self.products.bytes()
    }

    fn forward(&mut self, set: &mut Set<E>) -> Result<()> {
        self.products.forward(set, Weight::Own(flat(&self.weight)), Accum::Replace);
        Ok(())
    }

    fn backward(&mut self, set: &mut Set<E>) -> Result<()> {
        self.products.backward(set, Weight::Own(flat(&self.weight)));
        Ok(())
    }
}
