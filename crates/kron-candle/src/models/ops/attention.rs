//! Attention of all heads, with rotary positions.

use std::ops::Range;

use crate::{Accum, Threads, product};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use ndarray::{Array2, Array4, ArrayView2, ArrayView4, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::attention_mask::AttentionMask;
use super::composed;
use super::exp::exp;
use super::heads::Heads;
use super::slices::{floats, is_fusable, like, read};
use super::vectors::{dot, greatest, sum, vectorised};
use crate::models::rope::Rotation;
use crate::models::tokens::Segment;

/// Number of queries whose scores are computed at once.
const QUERIES: usize = 64;

/// Computes softmax(rotated q · (rotated k)ᵀ/√width)·v of each head over its visible keys.
///
/// q and the output are n × queries × (heads·width), k and v are n × keys × (key heads·width). The mask knows the
/// position of each. The fused op gives padding an output of 0, and computes no score of a segment's token and
/// another segment's. It does not keep the scores: the backward pass computes them again, a few queries at a time.
///
/// # Errors
/// The shapes do not fit, or candle fails.
pub(in crate::models) fn attention(
    [q, k, v]: [&Tensor; 3],
    heads: Heads,
    rotation: Option<&Rotation>,
    mask: &AttentionMask,
) -> Result<Tensor> {
    let (wide, narrow) = (heads.queries * heads.width, heads.keys * heads.width);
    if [q.dim(2)?, k.dim(2)?, v.dim(2)?] != [wide, narrow, narrow] || k.dims() != v.dims() {
        bail!("q, k and v are {:?}, {:?} and {:?}, which {heads:?} do not fit", q.dims(), k.dims(), v.dims());
    }
    if !is_fusable(&[q, k, v]) {
        return composed::attention([q, k, v], heads, rotation, mask);
    }
    let op = Attention { heads, rotation: rotation.cloned(), mask: mask.clone() };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// Returns the gradients of q, k and v in [`attention`], for contiguous float32 tensors on the CPU.
///
/// # Errors
/// candle fails.
pub(in crate::models) fn attention_backward(
    [q, k, v]: [&Tensor; 3],
    heads: Heads,
    rotation: Option<&Rotation>,
    mask: &AttentionMask,
    dy: &Tensor,
) -> Result<[Tensor; 3]> {
    let op = Attention { heads, rotation: rotation.cloned(), mask: mask.clone() };
    op.backward([q, k, v], dy)
}

struct Attention {
    heads: Heads,
    rotation: Option<Rotation>,
    mask: AttentionMask,
}

/// Key head of one row, with the query heads that share it.
struct Group<'a> {
    op: &'a Attention,
    tables: Option<[&'a [f32]; 2]>,
    row: usize,
    head: usize,
    /// Queries × (shared heads·width), without padding.
    q: ArrayView2<'a, f32>,
    /// Rotated keys × width, without padding.
    k: Array2<f32>,
    v: ArrayView2<'a, f32>,
}

/// Queries of one head whose scores are computed at once.
struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
    /// Position of the first query.
    position: usize,
    /// Rotated.
    q: Array2<f32>,
    /// Queries × visible keys.
    weights: Array2<f32>,
    spans: Vec<Span>,
}

/// Visible keys in a row, of the prefix or of the segment itself, and their columns of the weights.
struct Span {
    keys: Range<usize>,
    weights: Range<usize>,
}

impl Attention {
    /// Calls `f` with each group, and with its part of each output.
    fn each<const N: usize>(
        &self,
        [q, k, v]: [&[f32]; 3],
        n: usize,
        outputs: [&mut Array4<f32>; N],
        f: impl Fn(Group, [ArrayViewMut2<f32>; N]) -> Result<()> + Sync,
    ) -> Result<()> {
        let heads = self.heads;
        let (wide, narrow) = (heads.shared() * heads.width, heads.width);
        let view = |x, per: usize| -> Result<ArrayView4<f32>> {
            let len = <[f32]>::len(x) / (n * heads.keys * per).max(1);
            ArrayView4::from_shape((n, len, heads.keys, per), x).map_err(candle_core::Error::wrap)
        };
        let (q, k, v) = (view(q, wide)?, view(k, narrow)?, view(v, narrow)?);
        let tables = match self.rotation.as_ref().map(Rotation::tables) {
            Some([cos, sin]) => Some([read(cos)?, read(sin)?]),
            None => None,
        };
        let mut parts: Vec<Vec<ArrayViewMut2<f32>>> = (0..n * heads.keys).map(|_| Vec::new()).collect();
        for output in outputs {
            let (_, len, _, per) = output.dim();
            for (part, chunk) in parts.iter_mut().zip(output.exact_chunks_mut((1, len, 1, per))) {
                part.push(chunk.index_axis_move(Axis(0), 0).index_axis_move(Axis(1), 0));
            }
        }
        parts.into_par_iter().enumerate().try_for_each(|(i, outputs)| {
            let (row, head) = (i / heads.keys, i % heads.keys);
            let (queries, keys) = (self.mask.queries(row), self.mask.keys(row));
            let tables = tables.as_ref().map(|[cos, sin]| [&**cos, &**sin]);
            let (q, v) = (q.slice(s![row, ..queries, head, ..]), v.slice(s![row, ..keys, head, ..]));
            let mut rotated = Array2::zeros(v.dim());
            self.rotate_keys(tables, row, 1.0, k.slice(s![row, ..keys, head, ..]), rotated.view_mut());
            let outputs = outputs.try_into().map_err(|_| candle_core::Error::msg("an output has no part"))?;
            f(Group { op: self, tables, row, head, q, k: rotated, v }, outputs)
        })
    }

    /// Copies the keys of a row, rotated by `sign` times the angles of their positions.
    fn rotate_keys(
        &self,
        tables: Option<[&[f32]; 2]>,
        row: usize,
        sign: f32,
        given: ArrayView2<f32>,
        mut to: ArrayViewMut2<f32>,
    ) {
        for Segment { prefix, own, .. } in self.mask.segments(row) {
            let own = s![own.clone(), ..];
            rotate(tables, prefix.len(), sign, given.slice(own), to.slice_mut(own));
        }
    }
}

impl Group<'_> {
    /// Calls `f` with the weights of a few queries of a segment and a head at a time.
    fn parts(&self, mut f: impl FnMut(Part) -> Result<()>) -> Result<()> {
        let Attention { heads, mask, .. } = self.op;
        for segment in mask.segments(self.row) {
            for head in 0..heads.shared() {
                for first in mask.queries_of(segment).step_by(QUERIES) {
                    f(self.part(segment, head, first)?)?;
                }
            }
        }
        Ok(())
    }

    fn part(&self, segment: &Segment, head: usize, first: usize) -> Result<Part> {
        let Attention { heads, mask, .. } = self.op;
        let columns = head * heads.width..(head + 1) * heads.width;
        let rows = first..mask.queries_of(segment).end.min(first + QUERIES);
        let position = mask.position(segment, first);
        let given = self.q.slice(s![rows.clone(), columns.clone()]);
        let mut q = Array2::zeros(given.dim());
        rotate(self.tables, position, 1.0, given, q.view_mut());
        let [_, Range { start, .. }] = mask.visible_keys(segment, first);
        let [prefix, Range { end, .. }] = mask.visible_keys(segment, rows.end - 1);
        let (spans, keys) = spans([prefix, start..end]);
        let mut weights = Array2::zeros((rows.len(), keys));
        for Span { keys, weights: columns } in &spans {
            let k = self.k.slice(s![keys.clone(), ..]);
            let scores = weights.slice_mut(s![.., columns.clone()]);
            product(scores, Accum::Replace, q.view(), k.t(), Threads::One)?;
        }
        for (query, mut row) in rows.clone().zip(weights.rows_mut()) {
            let Some(row) = row.as_slice_mut() else { continue };
            let [prefix, own] = mask.visible_keys(segment, query);
            // A local mask has no prefix, and any other no keys before the visible ones.
            let hidden = own.start - start;
            let visible = hidden..hidden + prefix.len() + own.len();
            vectorised!(softmax(row, visible.clone(), heads.scale()));
        }
        Ok(Part { rows, columns, position, q, weights, spans })
    }
}

/// Places runs of keys side by side, without empty ones; returns the number of keys, too.
fn spans(keys: [Range<usize>; 2]) -> (Vec<Span>, usize) {
    let mut columns = 0;
    let mut spans = Vec::with_capacity(2);
    for keys in keys {
        let weights = columns..columns + keys.len();
        columns = weights.end;
        if !keys.is_empty() {
            spans.push(Span { keys, weights });
        }
    }
    (spans, columns)
}

/// Replaces scores by their softmax over the visible keys, and the others by 0.
#[inline(always)]
fn softmax(row: &mut [f32], visible: Range<usize>, scale: f32) {
    let (row, after) = row.split_at_mut(visible.end);
    let (before, row) = row.split_at_mut(visible.start);
    before.fill(0.0);
    after.fill(0.0);
    let highest = greatest(row);
    row.iter_mut().for_each(|score| *score = exp((*score - highest) * scale));
    let sum = sum(row);
    row.iter_mut().for_each(|weight| *weight /= sum);
}

/// Copies rows with their pairs (i, i + width/2) rotated by `sign` times their angle; row 0 stands at `from`.
///
/// Without tables it copies alone.
fn rotate(
    tables: Option<[&[f32]; 2]>,
    from: usize,
    sign: f32,
    given: ArrayView2<f32>,
    mut to: ArrayViewMut2<f32>,
) {
    let half = given.ncols() / 2;
    for (i, (given, mut to)) in given.rows().into_iter().zip(to.rows_mut()).enumerate() {
        let (Some(given), Some(to), Some([cos, sin])) = (given.as_slice(), to.as_slice_mut(), tables) else {
            to.assign(&given);
            continue;
        };
        let at = (from + i) * half;
        let ((a, b), (first, second)) = (given.split_at(half), to.split_at_mut(half));
        let tables = cos[at..at + half].iter().zip(&sin[at..at + half]);
        vectorised!({
            for ((((a, b), first), second), (cos, sin)) in
                a.iter().zip(b).zip(first.iter_mut()).zip(second.iter_mut()).zip(tables.clone())
            {
                *first = a * cos - sign * b * sin;
                *second = b * cos + sign * a * sin;
            }
        });
    }
}

impl Attention {
    fn backward(&self, [q, k, v]: [&Tensor; 3], dy: &Tensor) -> Result<[Tensor; 3]> {
        let dy = dy.contiguous()?;
        let (n, queries, wide) = q.dims3()?;
        let (keys, per) = (k.dim(1)?, wide / self.heads.keys);
        let scale = self.heads.scale();
        let (given_q, given_k, given_v) = (read(q)?, read(k)?, read(v)?);
        let given_dy = read(&dy)?;
        let dy = ArrayView4::from_shape((n, queries, self.heads.keys, per), &given_dy);
        let dy = dy.map_err(candle_core::Error::wrap)?;
        let mut dq = Array4::zeros((n, queries, self.heads.keys, per));
        let (mut dk, mut dv) = (
            Array4::zeros((n, keys, self.heads.keys, self.heads.width)),
            Array4::zeros((n, keys, self.heads.keys, self.heads.width)),
        );
        let qkv = [&*given_q, &*given_k, &*given_v];
        self.each(qkv, n, [&mut dq, &mut dk, &mut dv], |group, [mut dq, mut dk, mut dv]| {
            let mut drotated = Array2::zeros(group.k.dim());
            group.parts(|Part { rows, columns, position, q, weights, spans }| {
                let dy = dy.slice(s![group.row, .., group.head, ..]);
                let dy = dy.slice(s![rows.clone(), columns.clone()]);
                let mut scores = Array2::zeros(weights.dim());
                for Span { keys, weights: columns } in &spans {
                    let (keys, columns) = (s![keys.clone(), ..], s![.., columns.clone()]);
                    let weights = weights.slice(columns);
                    product(dv.slice_mut(keys), Accum::Add, weights.t(), dy, Threads::One)?;
                    let v = group.v.slice(keys);
                    product(scores.slice_mut(columns), Accum::Replace, dy, v.t(), Threads::One)?;
                }
                for (mut scores, weights) in scores.rows_mut().into_iter().zip(weights.rows()) {
                    let (Some(scores), Some(weights)) = (scores.as_slice_mut(), weights.as_slice()) else {
                        continue;
                    };
                    vectorised!({
                        let mean = dot(scores, weights);
                        scores.iter_mut().zip(weights).for_each(|(d, p)| *d = scale * p * (*d - mean));
                    });
                }
                let mut back = Array2::zeros(q.dim());
                for Span { keys, weights: columns } in &spans {
                    let (keys, scores) = (s![keys.clone(), ..], scores.slice(s![.., columns.clone()]));
                    product(back.view_mut(), Accum::Add, scores, group.k.slice(keys), Threads::One)?;
                    product(drotated.slice_mut(keys), Accum::Add, scores.t(), q.view(), Threads::One)?;
                }
                rotate(group.tables, position, -1.0, back.view(), dq.slice_mut(s![rows, columns]));
                Ok(())
            })?;
            let keys = drotated.nrows();
            let dk = dk.slice_mut(s![..keys, ..]);
            self.rotate_keys(group.tables, group.row, -1.0, drotated.view(), dk);
            Ok(())
        })?;
        let tensor = |gradient: Array4<f32>, of| like(gradient.into_raw_vec_and_offset().0, of);
        Ok([tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?])
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let qkv = [floats(q, layout)?, floats(k, k_layout)?, floats(v, v_layout)?];
        let (n, queries, wide) = layout.shape().dims3()?;
        let mut y = Array4::zeros((n, queries, self.heads.keys, wide / self.heads.keys));
        self.each(qkv, n, [&mut y], |group, [mut y]| {
            group.parts(|Part { rows, columns, weights, spans, .. }| {
                let mut y = y.slice_mut(s![rows, columns]);
                for Span { keys, weights: columns } in spans {
                    let (weights, v) = (weights.slice(s![.., columns]), group.v.slice(s![keys, ..]));
                    product(y.view_mut(), Accum::Add, weights, v, Threads::One)?;
                }
                Ok(())
            })
        })?;
        Ok((CpuStorage::F32(y.into_raw_vec_and_offset().0), layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = self.backward([q, k, v], dy)?;
        Ok((Some(dq), Some(dk), Some(dv)))
    }
}
