//! A frozen layer whose rows have different adapters, in one call of kron-core.

use std::sync::{Arc, OnceLock};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};
use kron_core::{
    Accum, AdapterPool, BackwardSegments, Cpu, Dropout, DropoutKey, ForwardSegments, KronOp, LayerDims, Pass,
    PoolEntry,
};

use crate::base::FrozenLinear;
use crate::device_ops::{Activation, Operand, on, tensor, with_activation};
use crate::frozen::Frozen;
use crate::linear::KronLinear;
use crate::trainable_delta::TrainableDelta;
use crate::views::{elements, elements_mut, view, view_mut};

impl KronLinear {
    /// Computes y = base(x), and adds to each row the output of its own adapter; without a graph, for inference.
    ///
    /// `table` has the number of an adapter in `adapters`, or −1 for none, for each row of x, … × d_in, or for each
    /// index of x's first dimension, such as the sequences of a batch. A row without an adapter has the base's bits;
    /// the others get from their adapter what it adds in a call over its rows alone, bit for bit.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Linear;
    /// use kron_candle::{KronLinear, KronOp, KronShape, LayerDims, PoolEntry, Scale, Theta};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let shape = KronShape::lora(LayerDims { d_out: 64, d_in: 96 }, 4)?;
    /// let (op, thetas) = (KronOp::new(shape, Scale::new(0.5)?), [1, 2].map(|seed| Theta::random(shape, seed)));
    /// let adapters = thetas.each_ref().map(|theta| PoolEntry { op, theta: theta.as_slice() });
    /// let layer = KronLinear::from(Linear::new(Tensor::zeros((64, 96), DType::F32, &Device::Cpu)?, None));
    /// let x = Tensor::ones((3, 5, 96), DType::F32, &Device::Cpu)?; // three sequences of five tokens
    /// let y = layer.forward_segments(&x, &adapters, &[1, -1, 0])?;
    /// assert_eq!(y.get(1)?.abs()?.max_all()?.to_scalar::<f32>()?, 0.0);
    /// assert_ne!(y.get(0)?.to_vec2::<f32>()?, y.get(2)?.to_vec2::<f32>()?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The layer has an adapter of its own or trains its weight, an adapter has other sizes, the table has another
    /// length or a number that is no adapter's, or x is not on the CPU: there is no call over segments for a GPU yet.
    pub fn forward_segments(&self, x: &Tensor, adapters: &[PoolEntry<'_>], table: &[i32]) -> Result<Tensor> {
        let (base, x, table) = (self.shared_base()?, x.detach().contiguous()?, spread(x, table)?);
        if adapters.is_empty() && table.iter().all(|&i| i == -1) {
            return x.apply_op1_no_bwd(&Frozen(base));
        }
        let pool = pool(adapters, base.dims())?;
        x.apply_op1_no_bwd(&Served { base, pool, table: &table })
    }

    /// Computes y as [`KronLinear::forward_segments`] does, in candle's graph: every adapter gets its own gradient.
    ///
    /// A key enables dropout, with one mask for the call, in which a row has its number in x. Gradients are
    /// deterministic, and an adapter without a row gets zeros. All θ are copied into one buffer for the call.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use candle_nn::Linear;
    /// use kron_candle::{KronLinear, KronShape, LayerDims, ScaleRule, Scaling, TrainableDelta};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let device = Device::Cpu;
    /// let shape = KronShape::lora(LayerDims { d_out: 64, d_in: 96 }, 4)?;
    /// let scaling = Scaling::new(8.0, 4, ScaleRule::AlphaOverR)?;
    /// let delta = |user, seed| TrainableDelta::new(user, shape, scaling, seed, &device);
    /// let users = [delta("ada", 1)?, delta("emmy", 2)?];
    /// let layer = KronLinear::from(Linear::new(Tensor::randn(0f32, 0.1, (64, 96), &device)?, None));
    /// let x = Tensor::randn(0f32, 1.0, (3, 96), &device)?;
    /// let y = layer.train_segments(&x, &users, &[1, -1, 0], None)?;
    /// let gradients = y.sqr()?.sum_all()?.backward()?;
    /// assert!(users.iter().all(|user| gradients.get(user.theta()).is_some()));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`KronLinear::forward_segments`], and without an adapter, for an unfused adapter, and for adapters of
    /// different random streams in a call with a key.
    pub fn train_segments(
        &self,
        x: &Tensor,
        adapters: &[TrainableDelta],
        table: &[i32],
        dropout: Option<DropoutKey>,
    ) -> Result<Tensor> {
        let (base, x, table) = (self.shared_base()?, x.contiguous()?, spread(x, table)?);
        if let Some(delta) = adapters.iter().find(|delta| !delta.is_fused()) {
            bail!("{} is unfused, but rows of many adapters are computed by the fused op", delta.module());
        }
        let mut keys = adapters.iter().filter(|delta| delta.op().dropout != Dropout::NONE);
        let key = match (dropout, keys.next()) {
            (Some(step), Some(first)) => {
                let key = first.key(step);
                if let Some(other) = keys.find(|delta| delta.key(step) != key) {
                    bail!(
                        "{} and {} have different random streams, but the rows of a call share one mask",
                        first.module(),
                        other.module()
                    );
                }
                Some(key)
            }
            _ => None,
        };
        let ops: Vec<KronOp> = adapters.iter().map(|delta| *delta.op()).collect();
        let thetas: Vec<&Tensor> = adapters.iter().map(|delta| delta.theta().as_tensor()).collect();
        if thetas.is_empty() {
            bail!("the call trains no adapter, but it needs at least one");
        }
        let theta = Tensor::cat(&thetas, 0)?;
        x.apply_op2(&theta, Trained { base, ops, table, key, t: OnceLock::new() })
    }

    /// Returns the base that all rows share.
    fn shared_base(&self) -> Result<Arc<dyn FrozenLinear>> {
        if let Some(delta) = self.deltas().first() {
            bail!("the layer has the adapter {} of its own, but its rows bring theirs", delta.module());
        }
        match self.base() {
            Some(base) => Ok(base),
            None => bail!("{self:?} trains its weight, but rows of many adapters share a frozen one"),
        }
    }
}

/// Returns a number for each row of x, … × d_in, from one for each row or for each index of its first dimension.
fn spread(x: &Tensor, table: &[i32]) -> Result<Vec<i32>> {
    if !matches!(x.device(), Device::Cpu) {
        bail!("x is on {:?}, but rows of many adapters are computed on the CPU", x.device().location());
    }
    let outer = x.dims().split_last().map_or(&[][..], |(_, outer)| outer);
    let (rows, first) = (outer.iter().product::<usize>(), outer.first().copied().unwrap_or(1));
    if table.len() == rows {
        return Ok(table.to_vec());
    }
    if table.len() != first {
        bail!(
            "the table has {} elements, but x has {rows} rows, {first} in its first dimension",
            table.len()
        );
    }
    Ok(table.iter().flat_map(|&i| std::iter::repeat_n(i, rows / first)).collect())
}

/// Returns the pool of adapters that fit a base.
fn pool<'a>(adapters: &'a [PoolEntry<'a>], dims: LayerDims) -> Result<AdapterPool<'a>> {
    let pool = AdapterPool::new(adapters).map_err(candle_core::Error::wrap)?;
    let LayerDims { d_out, d_in } = pool.layer();
    if (d_out, d_in) != (dims.d_out, dims.d_in) {
        bail!("the base is {}×{}, but its adapters are of {d_out}×{d_in}", dims.d_out, dims.d_in);
    }
    Ok(pool)
}

/// Computes y for x, … × d_in; returns T too.
fn forward(
    base: &dyn FrozenLinear,
    pool: &AdapterPool,
    x: Operand<CpuStorage>,
    table: &[i32],
    key: Option<DropoutKey>,
) -> Result<(CpuStorage, Shape, Vec<f32>)> {
    let LayerDims { d_out, d_in } = pool.layer();
    let shape = match x.1.dims().split_last() {
        Some((&last, outer)) if last == d_in => Shape::from([outer, &[d_out]].concat()),
        _ => bail!("x is {:?}, but the last dimension of a layer's input is d_in = {d_in}", x.1.shape()),
    };
    let mut y = base.cpu_forward(x.0, x.1)?;
    let t = with_activation!("activations are", y.dtype(), E => add::<E>(pool, x, &mut y, table, key))?;
    Ok((y, shape, t))
}

/// Adds the adapters' outputs to y; returns T.
fn add<E: Activation>(
    pool: &AdapterPool,
    x: Operand<CpuStorage>,
    y: &mut CpuStorage,
    table: &[i32],
    key: Option<DropoutKey>,
) -> Result<Vec<f32>> {
    let (cpu, rows, LayerDims { d_out, d_in }) = (Cpu::new(), table.len(), pool.layer());
    let mut t = vec![0.0; pool.t_len(rows)];
    let mut workspace = vec![0.0; cpu.segments_workspace_len(pool, Pass::Forward, rows)];
    let call = ForwardSegments {
        x: view(rows, d_in, elements::<E>(x)?)?,
        table,
        y: view_mut(rows, d_out, elements_mut::<E>(y)?)?,
        accum: Accum::Add,
        t: &mut t,
        workspace: &mut workspace,
        dropout: key,
    };
    cpu.forward_segments(pool, call).map_err(candle_core::Error::wrap)?;
    Ok(t)
}

/// Op on x: y = base(x), plus the output of each row's adapter.
struct Served<'a> {
    base: Arc<dyn FrozenLinear>,
    pool: AdapterPool<'a>,
    table: &'a [i32],
}

impl CustomOp1 for Served<'_> {
    fn name(&self) -> &'static str {
        "kron-segments"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (y, shape, _) = forward(&*self.base, &self.pool, (x, layout), self.table, None)?;
        Ok((y, shape))
    }
}

/// Op on (x, all θ): y = base(x), plus the output of each row's adapter.
struct Trained {
    base: Arc<dyn FrozenLinear>,
    ops: Vec<KronOp>,
    table: Vec<i32>,
    key: Option<DropoutKey>,
    t: OnceLock<Vec<f32>>,
}

impl Trained {
    /// Cuts the buffer of all θ into adapters.
    fn entries<'a>(&self, mut thetas: &'a [f32]) -> Vec<PoolEntry<'a>> {
        let entry = |op: &KronOp| {
            let theta = thetas.split_off(..op.shape.params()).unwrap_or_default();
            PoolEntry { op: *op, theta }
        };
        self.ops.iter().map(entry).collect()
    }

    /// Returns all dθ; adds dX to `dx`.
    fn backward<E: Activation>(
        &self,
        pool: &AdapterPool,
        x: Operand<CpuStorage>,
        dy: Operand<CpuStorage>,
        dx: Option<&mut CpuStorage>,
    ) -> Result<Vec<f32>> {
        let Some(t) = self.t.get() else { bail!("backward of a call that has not run forward") };
        let (cpu, rows, LayerDims { d_out, d_in }) = (Cpu::new(), self.table.len(), pool.layer());
        let pass = Pass::Backward { dx: dx.is_some() };
        let mut workspace = vec![0.0; cpu.segments_workspace_len(pool, pass, rows)];
        let mut grad = vec![0.0; self.ops.iter().map(|op| op.shape.params()).sum()];
        let mut rest = grad.as_mut_slice();
        let part = |op: &KronOp| rest.split_off_mut(..op.shape.params()).unwrap_or_default();
        let mut grads: Vec<&mut [f32]> = self.ops.iter().map(part).collect();
        let dx = match dx {
            Some(dx) => Some((view_mut(rows, d_in, elements_mut::<E>(dx)?)?, Accum::Add)),
            None => None,
        };
        let call = BackwardSegments {
            x: view(rows, d_in, elements::<E>(x)?)?,
            table: &self.table,
            t,
            dy: view(rows, d_out, elements::<E>(dy)?)?,
            dx,
            grads: &mut grads,
            workspace: &mut workspace,
            dropout: self.key,
        };
        cpu.backward_segments(pool, call).map_err(candle_core::Error::wrap)?;
        Ok(grad)
    }
}

impl CustomOp2 for Trained {
    fn name(&self) -> &'static str {
        "kron-segments-trained"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        theta: &CpuStorage,
        theta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let entries = self.entries(elements((theta, theta_layout))?);
        let pool = pool(&entries, self.base.dims())?;
        let (y, shape, t) = forward(&*self.base, &pool, (x, x_layout), &self.table, self.key)?;
        match self.t.set(t) {
            Ok(()) => Ok((y, shape)),
            Err(_) => bail!("a call of many adapters ran twice, but it is made for one forward pass"),
        }
    }

    fn bwd(
        &self,
        x: &Tensor,
        theta: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (location, dy) = (dy.device().location(), dy.contiguous()?);
        on(location, &dy, |dy: Operand<CpuStorage>| {
            let wanted = x.track_op().then(|| self.base.cpu_backward(dy.0, dy.1));
            let mut dx = wanted.transpose()?;
            let dtheta = on(location, x, |x: Operand<CpuStorage>| {
                on(location, theta, |theta: Operand<CpuStorage>| {
                    let entries = self.entries(elements(theta)?);
                    let pool = pool(&entries, self.base.dims())?;
                    with_activation!("a gradient is", dy.0.dtype(), E => {
                        self.backward::<E>(&pool, x, dy, dx.as_mut())
                    })
                })
            })?;
            let dtheta = tensor(CpuStorage::F32(dtheta), theta.shape());
            Ok((dx.map(|dx| tensor(dx, x.shape())), Some(dtheta)))
        })
    }
}
