//! [`AttentionMask`]: visible keys of each query.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor};

use crate::models::body::Attention;
use crate::models::tokens::Segment;

/// Attention mask of one forward pass, shared by all blocks.
#[derive(Clone, Debug)]
pub(in crate::models) struct AttentionMask {
    /// Segments of each row, in the order of their columns.
    rows: Arc<[Vec<Segment>]>,
    /// Number of keys before the first query, which a cache holds.
    past: usize,
    attention: Attention,
    /// Largest distance of a visible key of the segment itself.
    reach: Option<usize>,
    /// Mask and positions as tensors, made on first use.
    tensors: Arc<OnceLock<[Tensor; 2]>>,
}

impl AttentionMask {
    pub fn new(rows: Vec<Vec<Segment>>, past: usize, attention: Attention) -> Self {
        Self { rows: rows.into(), past, attention, reach: None, tensors: Arc::default() }
    }

    /// Makes the mask of texts in rows of their own, of which a token attends to those at most `reach` away.
    pub fn local(lens: &[usize], reach: usize) -> Self {
        // Without shared prefixes, so that columns are positions.
        let rows = lens.iter().enumerate().map(|(row, &len)| vec![Segment::whole(row, len)]).collect();
        Self { reach: Some(reach), ..Self::new(rows, 0, Attention::Bidirectional) }
    }

    /// Returns the column of the first query.
    pub const fn past(&self) -> usize {
        self.past
    }

    /// Returns the segments of a row.
    pub fn segments(&self, row: usize) -> &[Segment] {
        &self.rows[row]
    }

    /// Returns the number of keys of a row, without padding.
    pub fn keys(&self, row: usize) -> usize {
        self.rows[row].last().map_or(0, |segment| segment.own.end)
    }

    /// Returns the number of queries of a row that are tokens; those after them are padding.
    pub fn queries(&self, row: usize) -> usize {
        self.keys(row).saturating_sub(self.past)
    }

    /// Returns the queries of a segment.
    pub fn queries_of(&self, segment: &Segment) -> Range<usize> {
        segment.own.start.saturating_sub(self.past)..segment.own.end.saturating_sub(self.past)
    }

    /// Returns the position of a query of a segment.
    pub fn position(&self, segment: &Segment, query: usize) -> usize {
        segment.prefix.len() + self.past + query - segment.own.start
    }

    /// Returns the keys that a query of a segment attends to: those of the prefix and the segment's own.
    pub fn visible_keys(&self, segment: &Segment, query: usize) -> [Range<usize>; 2] {
        let column = self.past + query;
        let end = match self.attention {
            Attention::Bidirectional => segment.own.end,
            Attention::Causal => segment.own.end.min(column + 1),
        };
        let own = match self.reach {
            None => segment.own.start..end,
            Some(reach) => segment.own.start.max(column.saturating_sub(reach))..end.min(column + reach + 1),
        };
        [segment.prefix.clone(), own]
    }

    /// Returns the mask to add to scores, n × 1 × queries × keys, and the positions of the keys, n × keys.
    ///
    /// The mask is 0 for visible keys and −∞ for the others.
    pub fn tensors(&self, queries: usize, keys: usize, device: &Device) -> Result<&[Tensor; 2]> {
        if let Some(tensors) = self.tensors.get() {
            return Ok(tensors);
        }
        let n = self.rows.len();
        let mut mask = vec![f32::NEG_INFINITY; n * queries * keys];
        let mut positions = vec![0; n * keys];
        for (row, segments) in self.rows.iter().enumerate() {
            let mask = &mut mask[row * queries * keys..][..queries * keys];
            for segment in segments {
                for query in self.queries_of(segment) {
                    for visible in self.visible_keys(segment, query) {
                        mask[query * keys..][visible].fill(0.0);
                    }
                }
                let first = segment.prefix.len() as u32;
                positions[row * keys..][segment.own.clone()]
                    .iter_mut()
                    .zip(first..)
                    .for_each(|(to, at)| *to = at);
            }
            // A softmax over no key would be NaN.
            mask.chunks_mut(keys.max(1)).skip(self.queries(row)).for_each(|padding| padding[0] = 0.0);
        }
        let mask = Tensor::from_vec(mask, (n, 1, queries, keys), device)?;
        let positions = Tensor::from_vec(positions, (n, keys), device)?;
        Ok(self.tensors.get_or_init(|| [mask, positions]))
    }
}
