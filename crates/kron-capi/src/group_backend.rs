//! [`Groups`]: what a backend does with a group whose operands are checked.

use kron_core::{
    Accum, AdapterGroup, BackwardGroup, Cpu, DropoutKey, Element, ForwardGroup, GroupTerm, KronOp, Pass,
    Result,
};
use kron_kernels::{self as device, Cuda, DeviceGroup, DeviceTerm, Launcher};

use crate::pointers::FromPointers;

/// A term whose θ is the backend's.
pub(crate) struct Term<'a, B: FromPointers> {
    pub op: KronOp,
    pub theta: B::Floats<'a>,
    pub output: usize,
    pub dropout: Option<DropoutKey>,
}

/// A forward call.
pub(crate) struct GroupForward<'a, B: FromPointers, E: Element> {
    pub x: B::Rows<'a, E>,
    pub ys: Vec<(B::RowsMut<'a, E>, Accum)>,
    pub t: B::FloatsMut<'a>,
    pub workspace: B::FloatsMut<'a>,
}

/// A backward call.
pub(crate) struct GroupBackward<'a, B: FromPointers, E: Element> {
    pub x: B::Rows<'a, E>,
    pub t: B::Floats<'a>,
    pub dys: Vec<B::Rows<'a, E>>,
    pub dx: Option<(B::RowsMut<'a, E>, Accum)>,
    pub grads: Vec<B::FloatsMut<'a>>,
    pub workspace: B::FloatsMut<'a>,
}

/// A backend with calls over groups.
pub(crate) trait Groups: FromPointers {
    /// Returns the scratch of calls over at most `rows` rows.
    fn group_len(&self, terms: &[Term<'_, Self>], pass: Pass, rows: usize) -> Result<usize>
    where
        Self: Sized;
    fn group_forward<E: Element>(
        &self,
        terms: &[Term<'_, Self>],
        call: GroupForward<'_, Self, E>,
    ) -> Result<()>
    where
        Self: Sized;
    fn group_backward<E: Element>(
        &self,
        terms: &[Term<'_, Self>],
        call: GroupBackward<'_, Self, E>,
    ) -> Result<()>
    where
        Self: Sized;
}

fn on_host<'a>(terms: &[Term<'a, Cpu>]) -> Vec<GroupTerm<'a>> {
    let term =
        |&Term { op, theta, output, dropout }: &Term<'a, Cpu>| GroupTerm { op, theta, output, dropout };
    terms.iter().map(term).collect()
}

impl Groups for Cpu {
    fn group_len(&self, terms: &[Term<'_, Self>], pass: Pass, rows: usize) -> Result<usize> {
        Ok(self.group_workspace_len(&AdapterGroup::new(&on_host(terms))?, pass, rows))
    }

    fn group_forward<E: Element>(
        &self,
        terms: &[Term<'_, Self>],
        call: GroupForward<'_, Self, E>,
    ) -> Result<()> {
        let GroupForward { x, mut ys, t, workspace } = call;
        self.forward_group(
            &AdapterGroup::new(&on_host(terms))?,
            ForwardGroup { x, ys: &mut ys, t, workspace },
        )
    }

    fn group_backward<E: Element>(
        &self,
        terms: &[Term<'_, Self>],
        call: GroupBackward<'_, Self, E>,
    ) -> Result<()> {
        let GroupBackward { x, t, dys, dx, mut grads, workspace } = call;
        let call = BackwardGroup { x, t, dys: &dys, dx, grads: &mut grads, workspace };
        self.backward_group(&AdapterGroup::new(&on_host(terms))?, call)
    }
}

fn on_device<'a, L: Launcher>(terms: &[Term<'a, Cuda<L>>]) -> Vec<DeviceTerm<'a>> {
    let term =
        |&Term { op, theta, output, dropout }: &Term<'a, Cuda<L>>| DeviceTerm { op, theta, output, dropout };
    terms.iter().map(term).collect()
}

impl<L: Launcher> Groups for Cuda<L> {
    fn group_len(&self, terms: &[Term<'_, Self>], pass: Pass, rows: usize) -> Result<usize> {
        Ok(self.group_workspace_len(&DeviceGroup::new(&on_device(terms))?, pass, rows))
    }

    fn group_forward<E: Element>(
        &self,
        terms: &[Term<'_, Self>],
        call: GroupForward<'_, Self, E>,
    ) -> Result<()> {
        let GroupForward { x, mut ys, t, workspace } = call;
        let call = device::ForwardGroup { x, ys: &mut ys, t, workspace };
        self.forward_group(&DeviceGroup::new(&on_device(terms))?, call)
    }

    fn group_backward<E: Element>(
        &self,
        terms: &[Term<'_, Self>],
        call: GroupBackward<'_, Self, E>,
    ) -> Result<()> {
        let GroupBackward { x, t, dys, dx, mut grads, workspace } = call;
        let call = device::BackwardGroup { x, t, dys: &dys, dx, grads: &mut grads, workspace };
        self.backward_group(&DeviceGroup::new(&on_device(terms))?, call)
    }
}
