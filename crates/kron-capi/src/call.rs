//! Calls: checks the structs of `kron.h` and hands them to a backend.

use std::ffi::c_int;

use kron_core::{Accum, Backward, DropoutKey, Element, Forward, KronOp, Merge, Result};

use crate::dispatch::{Job, dispatch};
use crate::dtype::with_dtype;
use crate::group_backend::Groups;
use crate::overlap::{self, Span};
use crate::pointers::{FromPointers, Matrix};
use crate::status::guard;
use crate::types::{KronBackward, KronDevice, KronForward, KronKey, KronMerge};
use crate::{fork, refuse, types};

/// Parses op and device and runs a call on it.
///
/// # Safety
/// Each pointer is null or points to its struct, whose own pointers hold the elements that the struct describes.
pub(crate) unsafe fn run<C: Call>(
    device: *const KronDevice,
    op: *const types::KronOp,
    call: *const C,
) -> c_int {
    guard(|| {
        // SAFETY: the caller's promise.
        let (device, op, call) = unsafe { (device.as_ref(), shared("op", op)?, shared("call", call)?) };
        if device.is_none() {
            fork::prepare_host()?;
        }
        // Copies: the structs may lie in memory that the call writes.
        dispatch(device.copied(), Prepared { op: op.parse()?, call: *call })
    })
}

/// One of the three calls.
pub(crate) trait Call: Copy {
    fn dtype(&self) -> u32;
    /// # Safety
    /// The struct's pointers hold the elements that it describes, of type E, in the backend's memory.
    unsafe fn run<B: FromPointers, E: Element>(&self, on: &B, op: &KronOp) -> Result<()>;
}

struct Prepared<C> {
    op: KronOp,
    call: C,
}

impl<C: Call> Job for Prepared<C> {
    fn on<B: Groups>(self, on: &B) -> Result<()> {
        let Prepared { op, call } = self;
        // SAFETY: the promise of `run`'s caller; the arm is the struct's dtype.
        unsafe { with_dtype!(call.dtype(), E => call.run::<B, E>(on, &op)) }
    }
}

impl Call for KronForward {
    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<B: FromPointers, E: Element>(&self, on: &B, op: &KronOp) -> Result<()> {
        let (n, s) = (self.rows, &op.shape);
        let x = matrix("x", self.x.cast::<E>(), n, s.d_in(), self.x_stride)?;
        let y = matrix("y", self.y.cast::<E>().cast_const(), n, s.d_out(), self.y_stride)?;
        let t = floats("t", self.t, t_len(op, n)?)?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let theta = floats("theta", self.theta, s.params())?;
        let accum = accum(self.accumulate)?;
        overlap::check(
            &[
                Span::rows("y", &y),
                Span::floats("t", t, t_len(op, n)?),
                Span::floats("workspace", workspace, self.workspace_len),
            ],
            &[Span::rows("x", &x), Span::floats("theta", theta, s.params())],
        )?;
        // SAFETY: the pointers were checked for null, alignment and overlap, and the caller promises their
        // contents.
        let call = unsafe {
            Forward {
                theta: B::floats(theta, s.params()),
                x: B::rows(x),
                y: B::rows_mut(y.written()),
                accum,
                t: B::floats_mut(t.cast_mut(), t_len(op, n)?),
                workspace: B::floats_mut(workspace.cast_mut(), self.workspace_len),
                dropout: key(self.key),
            }
        };
        on.forward(op, call)
    }
}

impl Call for KronBackward {
    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<B: FromPointers, E: Element>(&self, on: &B, op: &KronOp) -> Result<()> {
        let (n, s) = (self.rows, &op.shape);
        let x = matrix("x", self.x.cast::<E>(), n, s.d_in(), self.x_stride)?;
        let dy = matrix("dy", self.dy.cast::<E>(), n, s.d_out(), self.dy_stride)?;
        let dx = match self.dx.is_null() {
            true => None,
            false => Some(matrix("dx", self.dx.cast::<E>().cast_const(), n, s.d_in(), self.dx_stride)?),
        };
        let t = floats("t", self.t, t_len(op, n)?)?;
        let grad = floats("grad", self.grad, s.params())?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let theta = floats("theta", self.theta, s.params())?;
        let accum = accum(self.accumulate)?;
        let no_dx = Span::floats("dx", std::ptr::null(), 0);
        overlap::check(
            &[
                dx.map_or(no_dx, |dx| Span::rows("dx", &dx)),
                Span::floats("grad", grad, s.params()),
                Span::floats("workspace", workspace, self.workspace_len),
            ],
            &[
                Span::rows("x", &x),
                Span::rows("dy", &dy),
                Span::floats("t", t, t_len(op, n)?),
                Span::floats("theta", theta, s.params()),
            ],
        )?;
        // SAFETY: the pointers were checked for null, alignment and overlap, and the caller promises their
        // contents.
        let call = unsafe {
            Backward {
                theta: B::floats(theta, s.params()),
                x: B::rows(x),
                t: B::floats(t, t_len(op, n)?),
                dy: B::rows(dy),
                dx: dx.map(|dx| (B::rows_mut(dx.written()), accum)),
                grad: B::floats_mut(grad.cast_mut(), s.params()),
                workspace: B::floats_mut(workspace.cast_mut(), self.workspace_len),
                dropout: key(self.key),
            }
        };
        on.backward(op, call)
    }
}

impl Call for KronMerge {
    fn dtype(&self) -> u32 {
        self.dtype
    }

    unsafe fn run<B: FromPointers, E: Element>(&self, on: &B, op: &KronOp) -> Result<()> {
        let s = &op.shape;
        let w = matrix("w", self.w.cast::<E>().cast_const(), self.rows, s.d_in(), self.w_stride)?;
        let workspace = floats("workspace", self.workspace, self.workspace_len)?;
        let theta = floats("theta", self.theta, s.params())?;
        let accum = accum(self.accumulate)?;
        overlap::check(
            &[Span::rows("w", &w), Span::floats("workspace", workspace, self.workspace_len)],
            &[Span::floats("theta", theta, s.params())],
        )?;
        // SAFETY: the pointers were checked for null, alignment and overlap, and the caller promises their
        // contents.
        let call = unsafe {
            Merge {
                theta: B::floats(theta, s.params()),
                w: B::rows_mut(w.written()),
                first_row: self.first_row,
                accum,
                workspace: B::floats_mut(workspace.cast_mut(), self.workspace_len),
            }
        };
        on.merge(op, call)
    }
}

/// Borrows a struct to read.
///
/// # Safety
/// The pointer is null or good to read for 'a.
pub(crate) unsafe fn shared<'a, T>(what: &'static str, pointer: *const T) -> Result<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| refuse(what, "a null pointer", "the call needs it"))
}

/// Borrows a struct to write.
///
/// # Safety
/// The pointer is null or good to write for 'a, and nothing else uses it.
pub(crate) unsafe fn exclusive<'a, T>(what: &'static str, pointer: *mut T) -> Result<&'a mut T> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_mut() }.ok_or_else(|| refuse(what, "a null pointer", "the call needs it"))
}

/// n·a_in·r, refused where it exceeds memory.
pub(crate) fn t_len(op: &KronOp, rows: usize) -> Result<usize> {
    extent::<f32>("t", rows, op.shape.t_row())
}

/// Parses the flag of a buffer that is written.
pub(crate) fn accum(flag: u32) -> Result<Accum> {
    match flag {
        0 => Ok(Accum::Replace),
        1 => Ok(Accum::Add),
        other => Err(refuse("accumulate", format!("the value {other}"), "it is 0 or 1")),
    }
}

/// Copies the key, if there is one.
pub(crate) fn key(key: *const KronKey) -> Option<DropoutKey> {
    // SAFETY: the caller of `run` promises null or a key.
    unsafe { key.as_ref() }.map(|&key| key.into())
}

/// Checks the rows of a matrix.
pub(crate) fn matrix<E>(
    what: &'static str,
    pointer: *const E,
    rows: usize,
    cols: usize,
    stride: usize,
) -> Result<Matrix<*const E>> {
    if stride < cols {
        return Err(refuse(what, format!("a stride of {stride}"), format!("its rows have {cols} elements")));
    }
    let len = extent::<E>(what, rows, stride)?;
    Ok(Matrix { pointer: checked(what, pointer, len)?, rows, cols, stride })
}

/// Checks a buffer of float32 elements.
pub(crate) fn floats(what: &'static str, pointer: *const f32, len: usize) -> Result<*const f32> {
    checked(what, pointer, extent::<f32>(what, 1, len)?)
}

/// Returns an aligned pointer; a dangling one for `len` 0.
pub(crate) fn checked<T>(what: &'static str, pointer: *const T, len: usize) -> Result<*const T> {
    match len {
        0 => Ok(std::ptr::dangling()),
        _ if pointer.is_null() => Err(refuse(what, "a null pointer", format!("holds {len} elements"))),
        _ if !pointer.is_aligned() => {
            let rule = format!("its elements have {} bytes", size_of::<T>());
            Err(refuse(what, format!("the address {:#x}", pointer.addr()), rule))
        }
        _ => Ok(pointer),
    }
}

/// rows·width elements, whose bytes an `isize` can count.
pub(crate) fn extent<T>(what: &'static str, rows: usize, width: usize) -> Result<usize> {
    let limit = isize::MAX as usize / size_of::<T>();
    rows.checked_mul(width).filter(|&len| len <= limit).ok_or_else(|| {
        refuse(what, format!("{rows} rows of {width}"), format!("memory has at most {limit} elements"))
    })
}

impl<E> Matrix<*const E> {
    /// The same matrix for writing: its pointer came from C as `*mut`.
    pub(crate) fn written(self) -> Matrix<*mut E> {
        let Matrix { pointer, rows, cols, stride } = self;
        Matrix { pointer: pointer.cast_mut(), rows, cols, stride }
    }
}
