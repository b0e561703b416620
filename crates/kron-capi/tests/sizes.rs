//! Workspaces of `kron_sizes` suffice for every call over fewer rows and for every band of a merge.

use std::ffi::{CStr, c_int};
use std::ptr::{null, null_mut};

use kron_capi::{
    KRON_BF16, KRON_EMULATED, KRON_F16, KRON_F32, KRON_OK, KRON_UNAVAILABLE, KronBackward, KronDevice,
    KronForward, KronMerge, KronOp, KronSizes, kron_backward, kron_forward, kron_last_error, kron_merge,
    kron_sizes,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

const EMULATED: KronDevice = KronDevice { device: KRON_EMULATED, stream: null_mut() };

fn must(status: c_int, what: &str) {
    // SAFETY: the text ends with a zero and lives until this thread's next call.
    let said = unsafe { CStr::from_ptr(kron_last_error()) }.to_string_lossy();
    assert_eq!(status, KRON_OK, "{what}: {said}");
}

fn sizes(device: *const KronDevice, op: &KronOp, rows: usize) -> KronSizes {
    let mut sizes = KronSizes { theta: 0, t: 0, forward: 0, backward: 0, merge: 0 };
    // SAFETY: the pointers are to structs or null.
    must(unsafe { kron_sizes(device, op, rows, &mut sizes) }, "kron_sizes");
    sizes
}

/// A random adapter; `large` ones have calls of several partitions.
fn op(rng: &mut Pcg64, large: bool) -> KronOp {
    let (a_out, a_in) =
        if rng.random() { (0, 0) } else { (rng.random_range(1..=6), rng.random_range(1..=6)) };
    let most = if large { 150 } else { 24 };
    let (b_out, c_in) = (rng.random_range(1..=most), rng.random_range(1..=most));
    let rank = if rng.random_bool(0.2) { 0 } else { rng.random_range(1..=most / 2) };
    // LoRA has a rank, and no A.
    let rank = if a_out == 0 { rank.max(1) } else { rank };
    let dropout = if rng.random() { 0.25 } else { 0.0 };
    KronOp { d_out: a_out.max(1) * b_out, d_in: a_in.max(1) * c_in, a_out, a_in, rank, scale: 1.5, dropout }
}

/// Calls all passes over `rows` rows, and a merge of a band, with the memory of `sizes`.
fn call(
    device: *const KronDevice,
    op: &KronOp,
    dtype: u32,
    rows: usize,
    band: (usize, usize),
    sizes: &KronSizes,
) {
    let what = format!("{op:?}, dtype {dtype}, {rows} rows, band {band:?}, {sizes:?}");
    let bytes = |elements: usize| vec![0_u32; elements.max(1)];
    let (x, mut y) = (bytes(rows * op.d_in), bytes(rows * op.d_out));
    let (dy, mut dx, mut w) = (bytes(rows * op.d_out), bytes(rows * op.d_in), bytes(band.1 * op.d_in));
    let floats = |len: usize| vec![0.5_f32; len];
    let (theta, mut t, mut grad) = (floats(sizes.theta), floats(sizes.t), floats(sizes.theta));
    let [mut forth, mut back, mut merged] = [sizes.forward, sizes.backward, sizes.merge].map(floats);
    // SAFETY: every buffer has at least the elements that its struct describes.
    unsafe {
        let forward = KronForward {
            dtype,
            accumulate: 0,
            rows,
            x: x.as_ptr().cast(),
            x_stride: op.d_in,
            y: y.as_mut_ptr().cast(),
            y_stride: op.d_out,
            theta: theta.as_ptr(),
            t: t.as_mut_ptr(),
            workspace: forth.as_mut_ptr(),
            workspace_len: sizes.forward,
            key: null(),
        };
        must(kron_forward(device, op, &forward), &what);
        let mut backward = KronBackward {
            dtype,
            accumulate: 0,
            rows,
            x: x.as_ptr().cast(),
            x_stride: op.d_in,
            dy: dy.as_ptr().cast(),
            dy_stride: op.d_out,
            dx: dx.as_mut_ptr().cast(),
            dx_stride: op.d_in,
            theta: theta.as_ptr(),
            t: t.as_ptr(),
            grad: grad.as_mut_ptr(),
            workspace: back.as_mut_ptr(),
            workspace_len: sizes.backward,
            key: null(),
        };
        must(kron_backward(device, op, &backward), &what);
        backward.dx = null_mut();
        must(kron_backward(device, op, &backward), &what);
        let merge = KronMerge {
            dtype,
            accumulate: 0,
            rows: band.1,
            first_row: band.0,
            w: w.as_mut_ptr().cast(),
            w_stride: op.d_in,
            theta: theta.as_ptr(),
            workspace: merged.as_mut_ptr(),
            workspace_len: sizes.merge,
        };
        must(kron_merge(device, op, &merge), &what);
    }
}

#[test]
fn sizes_suffice_for_fewer_rows_and_for_every_band() {
    let mut rng = Pcg64::seed_from_u64(5);
    let emulated: *const KronDevice = &EMULATED;
    let places = [(null(), 1500, true, 300), (null(), 20_000, false, 40), (emulated, 150, false, 90)];
    for (device, calls, large, most) in places {
        if !device.is_null() && !cfg!(debug_assertions) {
            continue;
        }
        for _ in 0..calls {
            let (op, rows) = (op(&mut rng, large), rng.random_range(0..=most));
            let dtype = [KRON_F32, KRON_F16, KRON_BF16][rng.random_range(0..3)];
            let fewer = rng.random_range(0..=rows);
            let first = rng.random_range(0..=op.d_out);
            let band = (first, rng.random_range(0..=op.d_out - first));
            call(device, &op, dtype, fewer, band, &sizes(device, &op, rows));
        }
    }
}

/// A release build of the library has no emulated device, even if the feature is on, as it is in this test.
#[test]
fn only_a_debug_build_has_the_emulation() {
    let op = KronOp { d_out: 8, d_in: 8, a_out: 0, a_in: 0, rank: 2, scale: 1.0, dropout: 0.0 };
    let mut sizes = KronSizes { theta: 0, t: 0, forward: 0, backward: 0, merge: 0 };
    // SAFETY: the pointers are to structs.
    let status = unsafe { kron_sizes(&EMULATED, &op, 4, &mut sizes) };
    assert_eq!(status, if cfg!(debug_assertions) { KRON_OK } else { KRON_UNAVAILABLE });
}
