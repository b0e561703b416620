//! `lora-fused` and `kron-fused`: the kernels of kron-core.

use kron_core::{Accum, Backend, Backward, Cpu, Element, Forward, KronOp, Pass, Result, Theta};

use crate::data::Set;
use crate::engine::{Engine, EngineConfig};

pub struct FusedEngine {
    cpu: Cpu,
    op: KronOp,
    theta: Theta,
    grad: Vec<f32>,
    rows: usize,
    workspace: Vec<f32>,
    accum: Accum,
}

impl FusedEngine {
    /// Makes an engine that adds to Y and dX, or replaces them.
    pub fn new<E: Element>((op, theta): (KronOp, Theta), config: &EngineConfig<E>, accum: Accum) -> Self {
        let len = |pass| config.cpu.workspace_len(&op, pass, config.rows);
        let workspace = vec![0.0; len(Pass::Forward).max(len(Pass::Backward { dx: true }))];
        let (cpu, rows, grad) = (config.cpu, config.rows, vec![0.0; op.shape.params()]);
        Self { cpu, op, theta, grad, rows, workspace, accum }
    }
}

impl<E: Element> Engine<E> for FusedEngine {
    fn scratch_bytes(&self, backward: bool) -> usize {
        let forward = self.cpu.workspace_len(&self.op, Pass::Forward, self.rows);
        4 * (self.op.t_len(self.rows) + if backward { self.workspace.len() } else { forward })
    }

    fn forward(&mut self, set: &mut Set<E>) -> Result<()> {
        let call = Forward {
            theta: self.theta.as_slice(),
            x: set.x.view(),
            y: set.y.view_mut(),
            accum: self.accum,
            t: set.t.as_mut_slice(),
            workspace: self.workspace.as_mut_slice(),
            dropout: None,
        };
        self.cpu.forward(&self.op, call)
    }

    fn backward(&mut self, set: &mut Set<E>) -> Result<()> {
        let call = Backward {
            theta: self.theta.as_slice(),
            x: set.x.view(),
            t: set.t.as_slice(),
            dy: set.dy.view(),
            dx: Some((set.dx.view_mut(), self.accum)),
            grad: self.grad.as_mut_slice(),
            workspace: self.workspace.as_mut_slice(),
            dropout: None,
        };
        self.cpu.backward(&self.op, call)
    }

    fn grad(&mut self) -> &mut [f32] {
        &mut self.grad
    }
}
