//! [`Groups`]: what a backend does with a group whose operands are checked.

use kron_core::{Accum, Cpu, Element, Group, Pass, Result};
use kron_kernels::{Cuda, Launcher};

use crate::pointers::FromPointers;

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

/// A group in a backend's memory.
pub(crate) type GroupOf<'t, 'f, B> = Group<'t, <B as kron_core::Backend>::Floats<'f>>;

/// A backend with calls over groups.
pub(crate) trait Groups: FromPointers + Sized {
    /// Returns the scratch of calls over at most `rows` rows.
    fn group_len(&self, group: &GroupOf<'_, '_, Self>, pass: Pass, rows: usize) -> usize;
    fn group_forward<E: Element>(
        &self,
        group: &GroupOf<'_, '_, Self>,
        call: GroupForward<'_, Self, E>,
    ) -> Result<()>;
    fn group_backward<E: Element>(
        &self,
        group: &GroupOf<'_, '_, Self>,
        call: GroupBackward<'_, Self, E>,
    ) -> Result<()>;
}

/// Implements the trait by the calls of one backend, whose arguments have types of its own.
macro_rules! groups {
    ([$($launcher:ident)?] $backend:ty, $forward:path, $backward:path) => {
        impl$(<$launcher: Launcher>)? Groups for $backend {
            fn group_len(&self, group: &GroupOf<'_, '_, Self>, pass: Pass, rows: usize) -> usize {
                self.group_workspace_len(group, pass, rows)
            }

            fn group_forward<E: Element>(&self, group: &GroupOf<'_, '_, Self>, call: GroupForward<'_, Self, E>) -> Result<()> {
                use $forward as Forward;
                let GroupForward { x, mut ys, t, workspace } = call;
                self.forward_group(group, Forward { x, ys: &mut ys, t, workspace })
            }

            fn group_backward<E: Element>(&self, group: &GroupOf<'_, '_, Self>, call: GroupBackward<'_, Self, E>) -> Result<()> {
                use $backward as Backward;
                let GroupBackward { x, t, dys, dx, mut grads, workspace } = call;
                self.backward_group(group, Backward { x, t, dys: &dys, dx, grads: &mut grads, workspace })
            }
        }
    };
}
groups!([] Cpu, kron_core::ForwardGroup, kron_core::BackwardGroup);
groups!([L] Cuda<L>, kron_kernels::ForwardGroup, kron_kernels::BackwardGroup);
