//! Calls over a group, on the kernels' emulation, agree with the host's and refuse what does not fit. A release build
//! has no emulation.
#![cfg(debug_assertions)]

use std::ffi::CStr;
use std::ptr::{null, null_mut};

use kron_capi::{
    KRON_EMULATED, KRON_F32, KRON_INVALID, KRON_OK, KronBackwardGroup, KronDevice, KronForwardGroup,
    KronGroupDy, KronGroupY, KronManySizes, KronOp, KronTerm, kron_backward_group, kron_forward_group,
    kron_group_sizes, kron_last_error,
};

const EMULATED: KronDevice = KronDevice { device: KRON_EMULATED, stream: null_mut() };
const ROWS: usize = 70;
const D_IN: usize = 256;
/// q, k and v, of which v has two terms.
const OPS: [(KronOp, usize); 4] =
    [(op(48, 4, 4), 0), (op(24, 2, 3), 1), (op(20, 4, 2), 2), (op(20, 2, 5), 2)];
const NONE: KronManySizes = KronManySizes { t: 0, forward: 0, backward: 0 };

const fn op(d_out: usize, a_out: usize, rank: usize) -> KronOp {
    KronOp { d_out, d_in: D_IN, a_out, a_in: 2, rank, scale: 0.75, dropout: 0.0 }
}

fn params(op: &KronOp) -> usize {
    op.a_out * op.a_in + op.rank * (op.d_out / op.a_out + op.d_in / op.a_in)
}

fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + seed * 101) % 64) as f32 / 32.0 - 1.0).collect()
}

/// Y, dX and the gradients of a forward and a backward call.
fn computed(device: *const KronDevice) -> [Vec<f32>; 8] {
    let thetas: Vec<_> = OPS.iter().enumerate().map(|(k, (op, _))| values(params(op), k)).collect();
    let term = |((op, output), theta): (&(KronOp, usize), &Vec<f32>)| KronTerm {
        op: *op,
        theta: theta.as_ptr(),
        output: *output,
        key: null(),
    };
    let terms: Vec<KronTerm> = OPS.iter().zip(&thetas).map(term).collect();
    let mut sizes = NONE;
    // SAFETY: the structs and the buffers live through the calls, and have the lengths that the library asked for.
    assert_eq!(unsafe { kron_group_sizes(device, terms.as_ptr(), 4, ROWS, &mut sizes) }, KRON_OK);
    let (x, mut dx) = (values(ROWS * D_IN, 11), values(ROWS * D_IN, 12));
    let [mut q, mut k, mut v] = [48, 24, 20].map(|d_out| values(ROWS * d_out, d_out));
    let dys = [48, 24, 20].map(|d_out| values(ROWS * d_out, d_out + 1));
    let (mut t, mut workspace) = (vec![f32::NAN; sizes.t], vec![f32::NAN; sizes.forward.max(sizes.backward)]);
    let mut grads: Vec<_> = OPS.iter().enumerate().map(|(k, (op, _))| values(params(op), 20 + k)).collect();
    let ys: Vec<KronGroupY> = [(&mut q, 48), (&mut k, 24), (&mut v, 20)]
        .into_iter()
        .map(|(y, y_stride)| KronGroupY { y: y.as_mut_ptr().cast(), y_stride, accumulate: 1 })
        .collect();
    let mut forward = KronForwardGroup {
        dtype: KRON_F32,
        rows: ROWS,
        x: x.as_ptr().cast(),
        x_stride: D_IN,
        ys: ys.as_ptr(),
        outputs: 3,
        t: t.as_mut_ptr(),
        workspace: workspace.as_mut_ptr(),
        workspace_len: workspace.len(),
    };
    // SAFETY: as above.
    assert_eq!(unsafe { kron_forward_group(device, terms.as_ptr(), 4, &forward) }, KRON_OK);
    let gradients: Vec<*mut f32> = grads.iter_mut().map(|grad| grad.as_mut_ptr()).collect();
    let dys: Vec<KronGroupDy> = dys
        .iter()
        .zip([48, 24, 20])
        .map(|(dy, dy_stride)| KronGroupDy { dy: dy.as_ptr().cast(), dy_stride })
        .collect();
    let mut backward = KronBackwardGroup {
        dtype: KRON_F32,
        accumulate: 1,
        rows: ROWS,
        x: x.as_ptr().cast(),
        x_stride: D_IN,
        dys: dys.as_ptr(),
        outputs: 3,
        dx: dx.as_mut_ptr().cast(),
        dx_stride: D_IN,
        t: t.as_ptr(),
        grads: gradients.as_ptr(),
        workspace: workspace.as_mut_ptr(),
        workspace_len: workspace.len(),
    };
    // SAFETY: as above.
    assert_eq!(unsafe { kron_backward_group(device, terms.as_ptr(), 4, &backward) }, KRON_OK);
    // What does not fit is refused, on every backend.
    forward.workspace_len = 0;
    // SAFETY: as above.
    assert_eq!(unsafe { kron_forward_group(device, terms.as_ptr(), 4, &forward) }, KRON_INVALID);
    backward.outputs = 2;
    // SAFETY: as above.
    assert_eq!(unsafe { kron_backward_group(device, terms.as_ptr(), 4, &backward) }, KRON_INVALID);
    // SAFETY: the library's string lives until this thread's next call.
    let error = unsafe { CStr::from_ptr(kron_last_error()) }.to_string_lossy().into_owned();
    assert_eq!(error, "outputs has the value 2, but the group has 3");
    let [a, b, c, d] = <[Vec<f32>; 4]>::try_from(grads).expect("four terms");
    [q, k, v, dx, a, b, c, d]
}

#[test]
fn a_group_agrees_with_the_host() {
    let (want, got) = (computed(null()), computed(&EMULATED));
    for (i, (want, got)) in want.iter().zip(&got).enumerate() {
        let size = want.iter().fold(0.0f32, |size, v| size.max(v.abs()));
        let error = want.iter().zip(got).fold(0.0f32, |error, (a, b)| error.max((a - b).abs()));
        // Both sum in float32, in other orders: sums of at most 256 · 70 terms whose signs differ.
        assert!(error <= 2e-5 * size, "operand {i}: {error} of {size}");
    }
}
