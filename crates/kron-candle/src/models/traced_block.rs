//! A decoder's block as one op of candle's graph, with a backward pass of its own.
//!
//! ```text
//! x ─ norm ─ q, k, v ─ (norms of heads) ─ attention ─ o ─ (+ x) mid ─ norm ─ gate, up ─ swiglu ─ down ─ (+ mid) y
//! ```
//!
//! candle's graph fills a buffer with zeros for every gradient and adds to it; a block has eighteen. Here gradients
//! are passed on as they are. With checkpointing an op keeps x alone, and computes the rest again in its backward
//! pass.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Trace;
use candle_core::{CpuStorage, CustomOp2, Error, Layout, Result, Shape, Tensor, bail};

use super::block::{Block, Pass};
use super::group_trace::{GroupTrace, array};
use super::ops::{
    add, attention, attention_backward, is_fusable, rms_norm, rms_norm_backward, swiglu, swiglu_backward,
};

/// Computes a block; keeps what its backward pass needs, or x alone.
///
/// # Errors
/// candle fails.
pub(super) fn traced_block(block: &Arc<Block>, x: &Tensor, pass: &Pass, keeps: bool) -> Result<Tensor> {
    let x = x.contiguous()?;
    let layers = block.layers();
    let deltas = layers.iter().flat_map(|layer| layer.deltas());
    let thetas: Vec<&Tensor> = deltas.map(|delta| delta.theta().as_tensor()).collect();
    let theta = match thetas.is_empty() {
        true => Tensor::zeros(1, x.dtype(), x.device())?,
        false => Tensor::cat(&thetas, 0)?,
    };
    let (y, kept) = Kept::new(block, &x.detach(), pass)?;
    let kept = Mutex::new(keeps.then_some(kept));
    let y = Mutex::new(Some(y));
    let op = TracedBlock { block: Arc::clone(block), pass: pass.clone(), y, kept };
    x.apply_op2(&theta, op)
}

/// Returns true if every gradient of the block can be computed here: float32 on the CPU, and no trained weight.
pub(super) fn is_traceable(block: &Block, x: &Tensor) -> bool {
    is_fusable(&[x]) && !block.trains_norms() && block.layers().iter().all(|l| l.is_traceable())
}

/// Op on (x, all θ of the block): the block's output, which was computed before.
struct TracedBlock {
    block: Arc<Block>,
    pass: Pass,
    /// Output, until the forward pass hands it out.
    y: Mutex<Option<Tensor>>,
    /// `None` if the backward pass computes it again.
    kept: Mutex<Option<Kept>>,
}

impl CustomOp2 for TracedBlock {
    fn name(&self) -> &'static str {
        "decoder-block"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match taken(&self.y) {
            Some(y) => Ok((CpuStorage::F32(y.flatten_all()?.to_vec1()?), y.shape().clone())),
            None => bail!("a block's op ran twice, but it is made for one forward pass"),
        }
    }

    fn bwd(
        &self,
        x: &Tensor,
        theta: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = match taken(&self.kept) {
            Some(kept) => kept,
            None => Kept::new(&self.block, &x.detach(), &self.pass)?.1,
        };
        let (dx, dthetas) = kept.backward(&self.block, &self.pass, dy, x.track_op())?;
        if !theta.track_op() {
            return Ok((dx, None));
        }
        let dtheta = Tensor::cat(&dthetas, 0)?;
        match dtheta.dims() == theta.dims() {
            true => Ok((dx, Some(dtheta))),
            false => bail!(
                "a block's adapters have {} parameters, but {} gradients",
                theta.elem_count(),
                dtheta.elem_count()
            ),
        }
    }
}

fn taken<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Results of the forward pass that the backward pass needs.
struct Kept {
    x: Tensor,
    /// Before the norms of heads.
    qkv: [Tensor; 3],
    mid: Tensor,
    gate: Tensor,
    up: Tensor,
    of_qkv: GroupTrace,
    of_o: Trace,
    of_gate_up: GroupTrace,
    of_down: Trace,
}

impl Kept {
    /// Computes y, without candle's graph.
    fn new(block: &Block, x: &Tensor, pass: &Pass) -> Result<(Tensor, Self)> {
        let [q, k, v, o, gate, up, down] = block.layers();
        let [input_norm, norm] = block.norms();
        let normed = rms_norm(x, input_norm, block.eps())?;
        let (qkv, of_qkv) = GroupTrace::new(&[q, k, v], &normed, pass.key)?;
        let [q, k, v] = array(qkv)?;
        let [normed_q, normed_k] = block.norm_heads([q.clone(), k.clone()])?;
        let mixed = attention([&normed_q, &normed_k, &v], block.heads(), Some(&pass.rotation), &pass.mask)?;
        drop((normed_q, normed_k));
        let (mixed, of_o) = o.trace(&mixed, pass.key)?;
        let mid = add(&mixed, x)?;
        let normed = rms_norm(&mid, norm, block.eps())?;
        let (gate_up, of_gate_up) = GroupTrace::new(&[gate, up], &normed, pass.key)?;
        let [gate, up] = array(gate_up)?;
        let (y, of_down) = down.trace(&swiglu(&gate, &up)?, pass.key)?;
        let y = add(&y, &mid)?;
        Ok((y, Self { x: x.clone(), qkv: [q, k, v], mid, gate, up, of_qkv, of_o, of_gate_up, of_down }))
    }

    /// Returns dX, if it is wanted, and the gradients of all θ, in the order of the layers.
    fn backward(
        self,
        block: &Block,
        pass: &Pass,
        dy: &Tensor,
        wants_dx: bool,
    ) -> Result<(Option<Tensor>, Vec<Tensor>)> {
        let Self { x, qkv: [q, k, v], mid, gate, up, of_qkv, of_o, of_gate_up, of_down } = self;
        let [input_norm, norm] = block.norms();
        let (dwide, down) = of_down.backward(dy, true)?;
        let dgate_up = swiglu_backward(&gate, &up, &inner(dwide)?)?;
        drop((gate, up, of_down));
        let (dnormed, gate_up) = of_gate_up.backward(&dgate_up, true)?;
        drop((dgate_up, of_gate_up));
        let dmid = add(&rms_norm_backward(&mid, norm, block.eps(), &inner(dnormed)?)?, dy)?;
        drop(mid);
        let (dmixed, o) = of_o.backward(&dmid, true)?;
        let [normed_q, normed_k] = block.norm_heads([q.clone(), k.clone()])?;
        let normed = [&normed_q, &normed_k, &v];
        let [dq, dk, dv] =
            attention_backward(normed, block.heads(), Some(&pass.rotation), &pass.mask, &inner(dmixed)?)?;
        let [dq, dk] = block.norm_heads_backward([&q, &k], [dq, dk])?;
        let (dnormed, qkv) = of_qkv.backward(&[dq, dk, dv], wants_dx)?;
        let dx = match dnormed {
            Some(dnormed) => Some(add(&rms_norm_backward(&x, input_norm, block.eps(), &dnormed)?, &dmid)?),
            None => None,
        };
        Ok((dx, [qkv, o.into_iter().collect(), gate_up, down.into_iter().collect()].concat()))
    }
}

/// Returns dX of layers inside the block.
fn inner(dx: Option<Tensor>) -> Result<Tensor> {
    dx.ok_or_else(|| Error::msg("a layer gave no gradient of its input"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use crate::{Dropout, DropoutKey, Inject, KronShape, LayerDims, ScaleRule, Scaling, Split};
    use candle_core::{DType, Device};
    use candle_nn::VarBuilder;

    use super::*;
    use crate::models::body::Body;
    use crate::models::layers::Layers;
    use crate::models::tokens::Tokens;
    use crate::models::{Decoder, DecoderConfig};

    const KINDS: [&str; 3] = ["llama", "qwen2", "qwen3"];

    fn config(kind: &str) -> DecoderConfig {
        serde_json::from_value(serde_json::json!({
            "model_type": kind, "head_dim": 8, "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": true
        }))
        .expect("a configuration")
    }

    /// Weights and θ that are equal for equal names.
    fn decoder(
        kind: &str,
        targets: &[&str],
        dropout: f64,
        fused: bool,
    ) -> (Decoder, Vec<crate::TrainableDelta>) {
        let config = config(kind);
        let mut tensors = HashMap::new();
        let mut put = |name: String, rows: usize, columns: usize| {
            let seed = name.bytes().map(u64::from).sum::<u64>();
            let values =
                (0..(rows * columns) as u64).map(|i| ((i * 7919 + seed * 131) % 997) as f32 / 2500.0 - 0.2);
            let tensor = Tensor::from_iter(values, &Device::Cpu).expect("values");
            let tensor = if rows == 1 { tensor } else { tensor.reshape((rows, columns)).expect("a matrix") };
            tensors.insert(name, tensor);
        };
        put("model.embed_tokens.weight".into(), 50, 32);
        put("model.norm.weight".into(), 1, 32);
        for i in 0..3 {
            let at = |name: &str| format!("model.layers.{i}.{name}.weight");
            for name in ["input_layernorm", "post_attention_layernorm"] {
                put(at(name), 1, 32);
            }
            for (name, len) in [
                ("self_attn.q_norm", 8),
                ("self_attn.k_norm", 8),
                ("self_attn.q_proj.bias", 32),
                ("self_attn.k_proj.bias", 16),
                ("self_attn.v_proj.bias", 16),
            ] {
                put(at(name).replace(".bias.weight", ".bias"), 1, len);
            }
            for (name, d_out, d_in) in [
                ("self_attn.q_proj", 32, 32),
                ("self_attn.k_proj", 16, 32),
                ("self_attn.v_proj", 16, 32),
                ("self_attn.o_proj", 32, 32),
                ("mlp.gate_proj", 40, 32),
                ("mlp.up_proj", 40, 32),
                ("mlp.down_proj", 32, 40),
            ] {
                put(at(name), d_out, d_in);
            }
        }
        let rule = |_: &str, dims: LayerDims| {
            let shape = KronShape::kron(dims, Split { a_out: 2, a_in: 4 }, 3)?;
            Ok((shape, Scaling::new(6.0, 3, ScaleRule::AlphaOverR)?))
        };
        let inject = match targets.is_empty() {
            true => Inject::nothing(),
            false => Inject::new(targets, 5, rule).expect("patterns"),
        };
        let inject = inject.with_dropout(Dropout::new(dropout as f32).expect("a probability"));
        let inject = if fused { inject } else { inject.unfused() };
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let decoder = Decoder::new(&config, &Layers::new(&inject, vb)).expect("a model");
        let deltas = inject.finish().expect("every pattern").deltas().to_vec();
        for delta in &deltas {
            // A new adapter's B is zero.
            let n = delta.theta().elem_count() as u64;
            let values = Tensor::from_iter((0..n).map(|i| (i * 31 % 17) as f32 / 40.0 - 0.2), &Device::Cpu);
            delta.theta().set(&values.expect("values")).expect("θ");
        }
        (decoder, deltas)
    }

    /// Returns the loss' gradients of all θ, as bits would differ from run to run if sums were not ordered.
    fn gradients(decoder: &Decoder, deltas: &[crate::TrainableDelta]) -> Vec<Vec<f32>> {
        let texts: [&[u32]; 3] = [&[1, 2, 3, 4, 5], &[7, 8], &[11, 12, 13]];
        let key = DropoutKey { seed: 3, offset: 1 };
        let hidden = decoder.hidden(&Tokens::new(&texts), Some(key)).expect("states");
        // Padding has no defined state.
        let real =
            Tensor::new(&[[1f32, 1., 1., 1., 1.], [1., 1., 0., 0., 0.], [1., 1., 1., 0., 0.]], &Device::Cpu);
        let real = real.expect("a mask").unsqueeze(2).expect("a dimension");
        let loss =
            (hidden.sqr().and_then(|h| h.broadcast_mul(&real))).and_then(|h| h.sum_all()).expect("a loss");
        let grads = loss.backward().expect("gradients");
        deltas.iter().map(|d| grads.get(d.theta()).expect("of each θ").to_vec1().expect("values")).collect()
    }

    const ALL: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

    /// Adapters on all layers and on some, and blocks without any; the unfused model takes candle's graph.
    #[test]
    fn gradients_are_those_of_candles_graph() {
        for kind in KINDS {
            for targets in
                [&ALL[..], &["v_proj", "down_proj"], &["layers.1.*.k_proj"], &["layers.0.*.gate_proj"]]
            {
                compare_with_graph(kind, targets);
            }
        }
    }

    fn compare_with_graph(kind: &str, targets: &[&str]) {
        let (traced, ours) = decoder(kind, targets, 0.0, true);
        let (graph, theirs) = decoder(kind, targets, 0.0, false);
        assert!(is_traceable(&traced.blocks()[0], traced.blocks()[0].norms()[0]));
        assert!(!graph.blocks().iter().all(|block| is_traceable(block, block.norms()[0])));
        let (ours, theirs) = (gradients(&traced, &ours), gradients(&graph, &theirs));
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let size = theirs.iter().fold(0f32, |size, v| size.max(v.abs()));
            assert!(size > 1e-6);
            for (a, b) in ours.iter().zip(theirs) {
                assert!((a - b).abs() < 1e-4 * size, "{kind}: {a} and {b} of {size}");
            }
        }
    }

    #[test]
    fn checkpointing_changes_no_bit() {
        for kind in KINDS {
            let (keeping, ours) = decoder(kind, &ALL, 0.3, true);
            let (mut recomputing, theirs) = decoder(kind, &ALL, 0.3, true);
            recomputing.recompute().expect("a traceable model");
            assert_eq!(gradients(&keeping, &ours), gradients(&recomputing, &theirs), "{kind}");
        }
        assert!(decoder("llama", &ALL, 0.0, false).0.recompute().is_err());
    }
}
