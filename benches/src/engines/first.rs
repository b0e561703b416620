//! `kron-first`: a whole layer, the adapter before the base product.

use std::sync::Arc;

use kron_core::{Accum, Element, KronOp, LayerDims, Result, Theta};
use ndarray::Array2;

use super::fused::FusedEngine;
use super::weight::{Products, Weight};
use crate::data::{Set, flat};
use crate::engine::{Engine, EngineConfig};
use crate::gemm::GemmCrate;

pub struct First<E> {
    adapter: FusedEngine,
    weight: Arc<Array2<E>>,
    products: Products,
}

impl<E: Element> First<E> {
    pub fn new(
        adapter: (KronOp, Theta),
        weight: Arc<Array2<E>>,
        library: GemmCrate,
        config: &EngineConfig<E>,
    ) -> Self {
        let (d_out, d_in) = weight.dim();
        let products = Products::new::<E>(library, config.threads, config.rows, LayerDims { d_out, d_in });
        Self { adapter: FusedEngine::new(adapter, config, Accum::Replace), weight, products }
    }
}

impl<E: Element> Engine<E> for First<E> {
    fn scratch_bytes(&self, backward: bool) -> usize {
        Engine::<E>::scratch_bytes(&self.adapter, backward) + self.products.bytes()
    }

    fn forward(&mut self, set: &mut Set<E>) -> Result<()> {
        self.adapter.forward(set)?;
        self.products.forward(set, Weight::Own(flat(&self.weight)), Accum::Add);
        Ok(())
    }

    fn backward(&mut self, set: &mut Set<E>) -> Result<()> {
        self.adapter.backward(set)?;
        self.products.backward(set, Weight::Own(flat(&self.weight)));
        Ok(())
    }

    fn grad(&mut self) -> &mut [f32] {
        Engine::<E>::grad(&mut self.adapter)
    }
}
