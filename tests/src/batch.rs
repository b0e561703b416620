//! Seeded batches: rows of many adapters in one call, and the same rows as one call per adapter.

use kron_core::{
    Accum, AdapterPool, BackwardSegments, Cpu, DropoutKey, Element, ForwardSegments, KronOp, Pass, PoolEntry,
    Theta,
};
use ndarray::{Array2, Axis};

use crate::guard::{Guarded, Matrix};
use crate::inputs::{Old, Problem, uniform};

/// A pool, a table and the operands of both passes.
#[derive(Clone, Debug)]
pub struct Batch<E> {
    /// The adapters, all of one layer.
    pub adapters: Vec<(KronOp, Theta)>,
    /// Adapter of each row, or −1.
    pub table: Vec<i32>,
    /// X, n × d_in.
    pub x: Array2<E>,
    /// dY, n × d_out.
    pub dy: Array2<E>,
    /// The mask's key.
    pub key: Option<DropoutKey>,
    /// Row stride minus width of every matrix.
    pub pad: usize,
}

/// Contents of a batch's outputs, before or after its calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs<E> {
    /// Y, n × d_out.
    pub y: Array2<E>,
    /// dX, n × d_in.
    pub dx: Array2<E>,
    /// \[dA | dB | dC\] of each adapter.
    pub grads: Vec<Vec<f32>>,
}

impl<E: Element> Batch<E> {
    /// Returns a batch with random operands.
    pub fn random(ops: &[KronOp], table: Vec<i32>, seed: u64) -> Self {
        let (s, n) = (ops[0].shape, table.len());
        let theta = |(i, &op): (u64, &KronOp)| (op, Theta::random(op.shape, seed ^ i << 8));
        Self {
            adapters: (0..).zip(ops).map(theta).collect(),
            table,
            x: uniform(n, s.d_in(), 1.0, seed ^ 0x0a),
            dy: uniform(n, s.d_out(), 1.0, seed ^ 0xd0),
            key: None,
            pad: 3,
        }
    }

    /// Numbers of an adapter's rows, in order.
    pub fn rows(&self, adapter: usize) -> Vec<usize> {
        (0..self.table.len()).filter(|&row| self.table[row] == adapter as i32).collect()
    }

    /// Returns the rows of one adapter as a problem of their own.
    pub fn problem(&self, adapter: usize) -> Problem<E> {
        let (op, theta) = self.adapters[adapter].clone();
        let rows = self.rows(adapter);
        let (x, dy) = (self.x.select(Axis(0), &rows), self.dy.select(Axis(0), &rows));
        Problem { op, theta, key: self.key, x, dy, pad: 0 }
    }

    /// Returns random contents of the outputs.
    pub fn old(&self, seed: u64) -> Outputs<E> {
        let Old { y, dx, .. } =
            Old::for_problem(&Problem { x: self.x.clone(), dy: self.dy.clone(), ..self.problem(0) }, seed);
        let grad = |(i, (op, _)): (u64, &(KronOp, Theta))| {
            uniform(1, op.shape.params(), 1.0, seed ^ i << 8).into_raw_vec_and_offset().0
        };
        Outputs { y, dx, grads: (0..).zip(&self.adapters).map(grad).collect() }
    }

    /// Runs both passes in buffers of exactly the lengths that are asked for, and checks that nothing else is
    /// written.
    ///
    /// # Panics
    /// A call that fails or writes what it must not.
    pub fn run(&self, cpu: &Cpu, accum: Accum, old: &Outputs<E>) -> Outputs<E> {
        let entries: Vec<PoolEntry> =
            self.adapters.iter().map(|(op, theta)| PoolEntry { op: *op, theta: theta.as_slice() }).collect();
        let pool = AdapterPool::new(&entries).unwrap_or_else(|e| panic!("the pool: {e}"));
        let rows = self.table.len();
        let scratch = |pass| Guarded::<f32>::poisoned(cpu.segments_workspace_len(&pool, pass, rows));
        let (x, dy) = (Matrix::input(&self.x, self.pad), Matrix::input(&self.dy, self.pad));
        let (mut y, mut dx) = (Matrix::output(&old.y, self.pad), Matrix::output(&old.dx, self.pad));
        let mut t = Guarded::poisoned(pool.t_len(rows));
        let mut workspace = scratch(Pass::Forward);
        let call = ForwardSegments {
            x: x.view(),
            table: &self.table,
            y: y.view_mut(),
            accum,
            t: t.body_mut(),
            workspace: workspace.body_mut(),
            dropout: self.key,
        };
        cpu.forward_segments(&pool, call).unwrap_or_else(|e| panic!("forward: {e}"));
        workspace.assert_intact("forward's workspace");
        let mut grads: Vec<Guarded<f32>> = old.grads.iter().map(|grad| Guarded::of(grad)).collect();
        let mut workspace = scratch(Pass::Backward { dx: true });
        let call = BackwardSegments {
            x: x.view(),
            table: &self.table,
            t: t.body(),
            dy: dy.view(),
            dx: Some((dx.view_mut(), accum)),
            grads: &mut grads.iter_mut().map(Guarded::body_mut).collect::<Vec<_>>(),
            workspace: workspace.body_mut(),
            dropout: self.key,
        };
        cpu.backward_segments(&pool, call).unwrap_or_else(|e| panic!("backward: {e}"));
        workspace.assert_intact("backward's workspace");
        y.assert_intact("y");
        dx.assert_intact("dx");
        t.assert_intact("t");
        grads.iter().for_each(|grad| grad.assert_intact("grad"));
        self.check_without_dx(cpu, &pool, t.body(), old, &grads);
        Outputs {
            y: y.view().to_owned(),
            dx: dx.view().to_owned(),
            grads: grads.iter().map(|grad| grad.body().to_vec()).collect(),
        }
    }

    /// Runs backward without dX and compares its gradients' bits.
    fn check_without_dx(
        &self,
        cpu: &Cpu,
        pool: &AdapterPool,
        t: &[f32],
        old: &Outputs<E>,
        want: &[Guarded<f32>],
    ) {
        let pass = Pass::Backward { dx: false };
        let mut grads = old.grads.clone();
        let mut workspace = vec![f32::NAN; cpu.segments_workspace_len(pool, pass, self.table.len())];
        let call = BackwardSegments {
            x: self.x.view(),
            table: &self.table,
            t,
            dy: self.dy.view(),
            dx: None,
            grads: &mut grads.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>(),
            workspace: &mut workspace,
            dropout: self.key,
        };
        cpu.backward_segments(pool, call).unwrap_or_else(|e| panic!("backward without dX: {e}"));
        assert!(grads.iter().zip(want).all(|(got, want)| got == want.body()), "gradients depend on dX");
    }
}

impl<E: Element> Outputs<E> {
    /// Bytes of all outputs.
    pub fn bits(&self) -> Vec<Vec<u8>> {
        let matrix = |m: &Array2<E>| m.iter().flat_map(|v| bytemuck::bytes_of(v).to_vec()).collect();
        let grads = self.grads.iter().map(|grad| bytemuck::cast_slice(grad).to_vec());
        [matrix(&self.y), matrix(&self.dx)].into_iter().chain(grads).collect()
    }
}
