//! Batches of a model whose texts have different adapters: [`ServedModules`] and [`AdapterBatch`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use kron_adapter::{Layer, PooledAdapter};
use kron_core::{LayerDims, PoolEntry};

use crate::linear::KronLinear;

/// Linear layers of a model that serves many adapters, by [`Inject::finish_serving`](crate::Inject::finish_serving).
#[derive(Clone, Debug)]
pub struct ServedModules {
    dims: HashMap<String, LayerDims>,
}

/// Adapters of the texts of one batch, for [`Body::next_logits`](crate::models::Body::next_logits). Clones share them.
///
/// It holds its adapters, so that a [`FilePool`](kron_adapter::FilePool) keeps them as long as the batch lives.
#[derive(Clone, Debug)]
pub struct AdapterBatch(Arc<Rows>);

#[derive(Debug)]
struct Rows {
    adapters: Vec<Arc<PooledAdapter>>,
    texts: usize,
    by_module: HashMap<String, ModuleRows>,
}

/// A module's adapters, as numbers among those of the batch, and the table of the texts over these.
#[derive(Debug)]
struct ModuleRows {
    adapters: Vec<usize>,
    table: Vec<i32>,
}

impl ServedModules {
    pub(crate) const fn new(dims: HashMap<String, LayerDims>) -> Self {
        Self { dims }
    }

    /// Makes the batch whose text i has the adapter number `table[i]`, or none for −1.
    ///
    /// Adapters that no text has are let go.
    ///
    /// # Errors
    /// The table has a number that is no adapter's, or an adapter in use has a layer that the model has not, or with
    /// other sizes.
    pub fn batch(&self, adapters: &[Arc<PooledAdapter>], table: &[i32]) -> Result<AdapterBatch> {
        if let Some((text, i)) =
            table.iter().enumerate().find(|(_, i)| !(-1..adapters.len() as i64).contains(&i64::from(**i)))
        {
            bail!(
                "text {text} has adapter {i}, but the batch has {} adapters, and -1 is for none",
                adapters.len()
            );
        }
        let used: HashSet<i32> = table.iter().copied().filter(|&i| i >= 0).collect();
        let mut used: Vec<usize> = used.into_iter().map(|i| i as usize).collect();
        used.sort_unstable();
        let mut by_module: HashMap<String, ModuleRows> = HashMap::new();
        for (number, &i) in used.iter().enumerate() {
            for layer in adapters[i].layers() {
                self.check(&adapters[i], layer)?;
                let rows = by_module
                    .entry(layer.module().to_owned())
                    .or_insert_with(|| ModuleRows { adapters: Vec::new(), table: vec![-1; table.len()] });
                rows.adapters.push(number);
            }
        }
        for rows in by_module.values_mut() {
            let places: HashMap<usize, i32> =
                rows.adapters.iter().map(|&number| used[number]).zip(0..).collect();
            for (row, i) in rows.table.iter_mut().zip(table) {
                *row = usize::try_from(*i).ok().and_then(|i| places.get(&i).copied()).unwrap_or(-1);
            }
        }
        let adapters = used.into_iter().map(|i| Arc::clone(&adapters[i])).collect();
        Ok(AdapterBatch(Arc::new(Rows { adapters, texts: table.len(), by_module })))
    }

    /// Fails unless the model has the layer's module, with its sizes.
    fn check(&self, adapter: &PooledAdapter, layer: &Layer) -> Result<()> {
        let (path, module, shape) = (adapter.path().display(), layer.module(), layer.shape());
        match self.dims.get(module) {
            None => bail!("{path} has an adapter of {module}, but the model has no such linear layer"),
            Some(&LayerDims { d_out, d_in }) if (d_out, d_in) != (shape.d_out(), shape.d_in()) => {
                bail!("{path} has {shape} for {module}, but the layer is {d_out}×{d_in}")
            }
            Some(_) => Ok(()),
        }
    }
}

impl AdapterBatch {
    /// Number of texts.
    pub fn texts(&self) -> usize {
        self.0.texts
    }

    /// Adapters in use, each once.
    pub fn adapters(&self) -> &[Arc<PooledAdapter>] {
        &self.0.adapters
    }

    /// Takes `counts[i]` rows of text i, one text after the other.
    pub(crate) fn over<'a>(&'a self, counts: &'a [usize]) -> BatchRows<'a> {
        BatchRows { batch: &self.0, counts }
    }
}

/// Rows of the texts of a batch.
pub(crate) struct BatchRows<'a> {
    batch: &'a Rows,
    /// Rows of each text.
    counts: &'a [usize],
}

impl BatchRows<'_> {
    /// Computes a layer for x, … × d_in, each row with the adapter of its text.
    ///
    /// # Errors
    /// x has another number of rows or is not on the CPU, or the layer was not made for serving.
    pub fn forward(&self, layer: &KronLinear, x: &Tensor) -> Result<Tensor> {
        let found = layer.module().and_then(|module| Some((module, self.batch.by_module.get(module)?)));
        let Some((module, rows)) = found else {
            return layer.forward_segments(x, &[], &vec![-1; self.counts.iter().sum()]);
        };
        let of_text = |(&i, &count): (&i32, &usize)| std::iter::repeat_n(i, count);
        let table: Vec<i32> = rows.table.iter().zip(self.counts).flat_map(of_text).collect();
        let entries = rows.adapters.iter().filter_map(|&i| self.batch.adapters[i].entry(module));
        let entries: Vec<PoolEntry<'_>> = entries.collect();
        layer.forward_segments(x, &entries, &table)
    }
}
