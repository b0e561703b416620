//! The op on Flex: a frozen layer and its adapter in one output, and its backward.
//!
//! ```text
//! forward    Y = X·W + b                  Y += s·A·(X·Cᵀ)·Bᵀ        T = X·Cᵀ is kept
//! backward   dX = dY·Wᵀ                   dX += dT·C                 [dA | dB | dC]
//! ```
//!
//! W is d_in × d_out, as burn stores it.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::ops::ModuleOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Flex, backend_extension};
use burn::tensor::Shape;
use kron_core::{Accum, Backend as _, Cpu, DropoutKey, KronOp, Pass};

use crate::dense::{self, Merging};
use crate::operands::{Activation, floats, in_rows, owned, tensor_of, view, view_mut, with_activation};

/// An adapter's arithmetic in one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// Shape, scale and dropout.
    pub op: KronOp,
    /// Key of the dropout mask; `None` in evaluation.
    pub key: Option<DropoutKey>,
}

/// The ops of this crate on a backend of burn.
///
/// Dtypes and shapes were checked before: activations and W have one dtype of f32, f16 and bf16, and θ is f32.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait KronBackend: Backend {
    /// Computes x·W and the adapter's output. x: … × d_in, W: d_in × d_out, θ: \[A | B | C\].
    fn kron_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        theta: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self>;

    /// Computes x·W + b and the adapter's output.
    fn kron_linear_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        theta: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self>;

    /// Computes W + ΔWᵀ, rounded once.
    fn kron_merge(weight: FloatTensor<Self>, theta: FloatTensor<Self>, merging: Merging)
    -> FloatTensor<Self>;
}

impl KronBackend for Flex {
    fn kron_linear(x: FlexTensor, weight: FlexTensor, theta: FlexTensor, call: Call) -> FlexTensor {
        forward(&in_rows(x), weight, None, &theta.to_contiguous(), call).0
    }

    fn kron_linear_bias(
        x: FlexTensor,
        weight: FlexTensor,
        bias: FlexTensor,
        theta: FlexTensor,
        call: Call,
    ) -> FlexTensor {
        forward(&in_rows(x), weight, Some(bias), &theta.to_contiguous(), call).0
    }

    fn kron_merge(weight: FlexTensor, theta: FlexTensor, merging: Merging) -> FlexTensor {
        with_activation!(weight.dtype(), E => dense::merge::<E>(weight, &theta.to_contiguous(), &merging))
    }
}

/// Computes Y and T. x is a matrix of rows, θ contiguous.
fn forward(
    x: &FlexTensor,
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    theta: &FlexTensor,
    call: Call,
) -> (FlexTensor, Vec<f32>) {
    fn add<E: Activation>(
        y: FlexTensor,
        x: &FlexTensor,
        theta: &FlexTensor,
        call: Call,
    ) -> (FlexTensor, Vec<f32>) {
        let (cpu, Call { op, key }) = (Cpu::new(), call);
        let (mut y, x) = (owned::<E>(y), view::<E>(x));
        let mut t = vec![0.0; op.t_len(x.nrows())];
        let mut workspace = vec![0.0; cpu.workspace_len(&op, Pass::Forward, x.nrows())];
        let call = kron_core::Forward::<'_, Cpu, E> {
            theta: floats(theta),
            x,
            y: view_mut::<E>(&mut y, op.shape.d_out()),
            accum: Accum::Add,
            t: &mut t,
            workspace: &mut workspace,
            dropout: key,
        };
        cpu.forward(&op, call).expect("sizes were checked before");
        (y, t)
    }
    let y = Flex::linear(x.clone(), weight, bias);
    with_activation!(x.dtype(), E => add::<E>(y, x, theta, call))
}

/// Operands that backward keeps.
#[derive(Clone, Debug)]
struct Saved {
    x: FlexTensor,
    weight: FlexTensor,
    theta: FlexTensor,
    t: Vec<f32>,
    call: Call,
}

impl Saved {
    /// Adds the adapter's dX to that of the base, and computes \[dA | dB | dC\]. dY is a matrix of rows.
    fn adapter_backward<E: Activation>(
        &self,
        dy: &FlexTensor,
        dx: Option<FlexTensor>,
    ) -> (Option<FlexTensor>, FlexTensor) {
        let (cpu, Call { op, key }) = (Cpu::new(), self.call);
        let (x, mut dx) = (view::<E>(&self.x), dx.map(owned::<E>));
        let mut grad = vec![0.0; op.shape.params()];
        let pass = Pass::Backward { dx: dx.is_some() };
        let mut workspace = vec![0.0; cpu.workspace_len(&op, pass, x.nrows())];
        let call = kron_core::Backward::<'_, Cpu, E> {
            theta: floats(&self.theta),
            x,
            t: &self.t,
            dy: view::<E>(dy),
            dx: dx.as_mut().map(|dx| (view_mut::<E>(dx, op.shape.d_in()), Accum::Add)),
            grad: &mut grad,
            workspace: &mut workspace,
            dropout: key,
        };
        cpu.backward(&op, call).expect("sizes were checked before");
        let shape = Shape::new([grad.len()]);
        (dx, tensor_of(grad, shape))
    }
}

/// Backward of `kron_linear`; parents x, W, θ and, with N = 4, the bias.
#[derive(Debug)]
struct LinearBackward;

impl<const N: usize> Backward<Flex, N> for LinearBackward {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = in_rows(grads.consume::<Flex>(&ops.node));
        let saved = ops.state;
        let mut parents = ops.parents.into_iter();
        let [x, weight, theta, bias] = std::array::from_fn(|_| parents.next().flatten());
        if x.is_some() || theta.is_some() {
            let dx = x.as_ref().map(|_| Flex::linear_x_backward(saved.weight.clone(), dy.clone()));
            let (dx, grad) = with_activation!(dy.dtype(), E => saved.adapter_backward::<E>(&dy, dx));
            if let (Some(x), Some(dx)) = (x, dx) {
                grads.register::<Flex>(x.id, dx);
            }
            if let Some(theta) = theta {
                grads.register::<Flex>(theta.id, grad);
            }
        }
        if let Some(weight) = weight {
            grads.register::<Flex>(weight.id, Flex::linear_weight_backward(saved.x, dy.clone()));
        }
        if let Some(bias) = bias {
            grads.register::<Flex>(bias.id, Flex::linear_bias_backward(dy));
        }
    }
}

/// Backward of `kron_merge`; parents W and θ.
#[derive(Debug)]
struct MergeBackward;

impl Backward<Flex, 2> for MergeBackward {
    type State = (FlexTensor, KronOp);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let [weight, theta] = ops.parents;
        let (dw, (saved, op)) = (grads.consume::<Flex>(&ops.node), ops.state);
        if let Some(theta) = theta {
            let grad = with_activation!(dw.dtype(), E => dense::backward::<E>(&dw, floats(&saved), &op));
            let shape = Shape::new([grad.len()]);
            grads.register::<Flex>(theta.id, tensor_of(grad, shape));
        }
        if let Some(weight) = weight {
            grads.register::<Flex>(weight.id, dw);
        }
    }
}

impl<C: CheckpointStrategy> KronBackend for Autodiff<Flex, C> {
    fn kron_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        theta: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        let ((x, of_x), (weight, of_weight)) = (x.into_parts(), weight.into_parts());
        let (theta, of_theta) = theta.into_parts();
        let (x, theta) = (in_rows(x), theta.to_contiguous());
        let (y, t) = forward(&x, weight.clone(), None, &theta, call);
        let prepared = Backward::<Flex, 3>::prepare::<C>(LinearBackward, [of_x, of_weight, of_theta]);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(Saved { x, weight, theta, t, call }, y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn kron_linear_bias(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        theta: FloatTensor<Self>,
        call: Call,
    ) -> FloatTensor<Self> {
        let ((x, of_x), (weight, of_weight)) = (x.into_parts(), weight.into_parts());
        let ((bias, of_bias), (theta, of_theta)) = (bias.into_parts(), theta.into_parts());
        let (x, theta) = (in_rows(x), theta.to_contiguous());
        let (y, t) = forward(&x, weight.clone(), Some(bias), &theta, call);
        let parents = [of_x, of_weight, of_theta, of_bias];
        let prepared = Backward::<Flex, 4>::prepare::<C>(LinearBackward, parents);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(Saved { x, weight, theta, t, call }, y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn kron_merge(
        weight: FloatTensor<Self>,
        theta: FloatTensor<Self>,
        merging: Merging,
    ) -> FloatTensor<Self> {
        let ((weight, of_weight), (theta, of_theta)) = (weight.into_parts(), theta.into_parts());
        let theta = theta.to_contiguous();
        let merged = Flex::kron_merge(weight, theta.clone(), merging);
        match MergeBackward.prepare::<C>([of_weight, of_theta]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((theta, merging.op), merged),
            OpsKind::UnTracked(prepared) => prepared.finish(merged),
        }
    }
}
