//! Calls over the rows of a pool, on the kernels' emulation, agree with the host's over segments and refuse what
//! does not fit. A release build has no emulation.
#![cfg(debug_assertions)]

use std::ffi::CStr;
use std::ptr::{null, null_mut};

use kron_capi::{
    KRON_EMULATED, KRON_F32, KRON_INVALID, KRON_OK, KronAdapter, KronBackwardPool, KronBackwardSegments,
    KronDevice, KronForwardPool, KronForwardSegments, KronManySizes, KronOp, KronPool, kron_backward_pool,
    kron_backward_segments, kron_forward_pool, kron_forward_segments, kron_last_error, kron_pool_sizes,
    kron_segments_sizes,
};

const OP: KronOp = KronOp { d_out: 12, d_in: 32, a_out: 3, a_in: 2, rank: 2, scale: 1.5, dropout: 0.0 };
const EMULATED: KronDevice = KronDevice { device: KRON_EMULATED, stream: null_mut() };
const PARAMS: usize = 6 + 8 + 32;
const STRIDE: usize = PARAMS + 2;
const SLOTS: usize = 3;
const TABLE: [i32; 6] = [2, -1, 0, 2, 7, 0];
const NONE: KronManySizes = KronManySizes { t: 0, forward: 0, backward: 0 };

fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 + seed * 101) % 64) as f32 / 32.0 - 1.0).collect()
}

/// The buffers of both passes.
struct Buffers {
    theta: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f32>,
    dy: Vec<f32>,
    dx: Vec<f32>,
    grads: Vec<f32>,
    table: Vec<i32>,
    t: Vec<f32>,
    workspace: Vec<f32>,
    status: [u32; 2],
}

impl Buffers {
    fn new(sizes: KronManySizes) -> Self {
        Self {
            theta: values(SLOTS * STRIDE, 1),
            x: values(6 * 32, 2),
            y: values(6 * 12, 3),
            dy: values(6 * 12, 4),
            dx: values(6 * 32, 5),
            grads: values(SLOTS * STRIDE, 6),
            table: TABLE.to_vec(),
            t: vec![0.0; sizes.t],
            workspace: vec![0.0; sizes.forward.max(sizes.backward)],
            status: [9; 2],
        }
    }

    fn pool(&self) -> KronPool {
        KronPool { op: OP, theta: self.theta.as_ptr(), slots: SLOTS, stride: STRIDE, scales: null() }
    }

    fn forward(&mut self) -> KronForwardPool {
        KronForwardPool {
            dtype: KRON_F32,
            accumulate: 1,
            rows: 6,
            x: self.x.as_ptr().cast(),
            x_stride: 32,
            y: self.y.as_mut_ptr().cast(),
            y_stride: 12,
            table: self.table.as_ptr(),
            t: self.t.as_mut_ptr(),
            workspace: self.workspace.as_mut_ptr(),
            workspace_len: self.workspace.len(),
            status: self.status.as_mut_ptr(),
            key: null(),
        }
    }

    fn backward(&mut self) -> KronBackwardPool {
        KronBackwardPool {
            dtype: KRON_F32,
            accumulate: 1,
            rows: 6,
            x: self.x.as_ptr().cast(),
            x_stride: 32,
            dy: self.dy.as_ptr().cast(),
            dy_stride: 12,
            dx: self.dx.as_mut_ptr().cast(),
            dx_stride: 32,
            table: self.table.as_ptr(),
            t: self.t.as_ptr(),
            grads: self.grads.as_mut_ptr(),
            workspace: self.workspace.as_mut_ptr(),
            workspace_len: self.workspace.len(),
            status: self.status.as_mut_ptr(),
            key: null(),
        }
    }
}

fn sizes() -> KronManySizes {
    let (empty, mut sizes) = (Buffers::new(NONE), NONE);
    // SAFETY: the structs and theta live through the call.
    assert_eq!(unsafe { kron_pool_sizes(&EMULATED, &empty.pool(), 6, &mut sizes) }, KRON_OK);
    sizes
}

/// Y, dX and the gradients of the host's calls, in which the row of no slot has no adapter.
fn on_host() -> Buffers {
    let thetas = values(SLOTS * STRIDE, 1);
    let adapters: Vec<KronAdapter> =
        (0..SLOTS).map(|slot| KronAdapter { op: OP, theta: thetas[slot * STRIDE..].as_ptr() }).collect();
    let mut sizes = NONE;
    // SAFETY: the structs and theta live through the call.
    assert_eq!(unsafe { kron_segments_sizes(null(), adapters.as_ptr(), SLOTS, 6, &mut sizes) }, KRON_OK);
    let mut b = Buffers::new(sizes);
    b.table[4] = -1;
    let KronForwardPool {
        dtype,
        accumulate,
        rows,
        x,
        x_stride,
        y,
        y_stride,
        table,
        t,
        workspace,
        workspace_len,
        ..
    } = b.forward();
    let call = KronForwardSegments {
        dtype,
        accumulate,
        rows,
        x,
        x_stride,
        y,
        y_stride,
        table,
        t,
        workspace,
        workspace_len,
        key: null(),
    };
    // SAFETY: the buffers have the lengths that the library asked for.
    assert_eq!(unsafe { kron_forward_segments(null(), adapters.as_ptr(), SLOTS, &call) }, KRON_OK);
    let grads: Vec<*mut f32> = b.grads.chunks_exact_mut(STRIDE).map(|grad| grad.as_mut_ptr()).collect();
    let KronBackwardPool {
        dtype,
        accumulate,
        rows,
        x,
        x_stride,
        dy,
        dy_stride,
        dx,
        dx_stride,
        table,
        t,
        workspace,
        workspace_len,
        ..
    } = b.backward();
    let grads = grads.as_ptr();
    let call = KronBackwardSegments {
        dtype,
        accumulate,
        rows,
        x,
        x_stride,
        dy,
        dy_stride,
        dx,
        dx_stride,
        table,
        t,
        grads,
        workspace,
        workspace_len,
        key: null(),
    };
    // SAFETY: as above.
    assert_eq!(unsafe { kron_backward_segments(null(), adapters.as_ptr(), SLOTS, &call) }, KRON_OK);
    b
}

#[test]
fn a_pool_agrees_with_the_host() {
    let want = on_host();
    let mut b = Buffers::new(sizes());
    let pool = b.pool();
    let forward = b.forward();
    // SAFETY: the buffers have the lengths that the library asked for, here and below.
    assert_eq!(unsafe { kron_forward_pool(&EMULATED, &pool, &forward) }, KRON_OK);
    assert_eq!(b.status, [1, 4]);
    let backward = b.backward();
    // SAFETY: as above.
    assert_eq!(unsafe { kron_backward_pool(&EMULATED, &pool, &backward) }, KRON_OK);
    let old = Buffers::new(NONE);
    for (what, got, want, old) in [
        ("y", &b.y, &want.y, &old.y),
        ("dx", &b.dx, &want.dx, &old.dx),
        ("grads", &b.grads, &want.grads, &old.grads),
    ] {
        // A few dozen terms of size 1 to 4 and sums of them: float32 rounds to less than 1e-4.
        let far = got.iter().zip(want).position(|(got, want)| (got - want).abs() > 1e-4);
        assert_eq!(far, None, "{what}");
        assert!(got != old, "{what} was not written");
    }
}

#[test]
fn scales_of_slots_take_the_place_of_the_ops() {
    let run = |scales: Option<[f32; SLOTS]>, scale| {
        let mut b = Buffers::new(sizes());
        let pool = KronPool {
            op: KronOp { scale, ..OP },
            scales: scales.as_ref().map_or(null(), |s| s.as_ptr()),
            ..b.pool()
        };
        let forward = b.forward();
        // SAFETY: the buffers have the lengths that the library asked for.
        assert_eq!(unsafe { kron_forward_pool(&EMULATED, &pool, &forward) }, KRON_OK);
        b.y
    };
    let own = run(Some([0.5, 9.0, 3.0]), 1.5);
    let (half, three) = (run(None, 0.5), run(None, 3.0));
    for (row, slot) in TABLE.into_iter().enumerate() {
        let want = if slot == 0 { &half } else { &three };
        assert_eq!(own[12 * row..][..12], want[12 * row..][..12], "row {row}");
    }
}

#[test]
fn hostile_structs_are_refused_before_anything_is_written() {
    type Change<'a> = &'a dyn Fn(&mut KronPool, &mut KronForwardPool, &mut KronBackwardPool);
    let changes: [(Change, &str); 12] = [
        (&|p, _, _| p.theta = null(), "theta has a null pointer"),
        (&|p, _, _| p.slots = 0, "the pool has 0 slots"),
        (&|p, _, _| p.stride = PARAMS - 1, "a slot has at least the 46 elements"),
        (&|p, _, _| (p.slots, p.stride) = (usize::MAX, 1 << 40), "theta has"),
        (&|_, f, b| (f.table, b.table) = (null(), null()), "table has a null pointer"),
        (
            &|_, f, b| (f.table, b.table) = (f.table.wrapping_byte_add(2), b.table.wrapping_byte_add(2)),
            "table has the address",
        ),
        (&|_, f, b| (f.status, b.status) = (null_mut(), null_mut()), "status has a null pointer"),
        (&|_, f, b| (f.dtype, b.dtype) = (9, 9), "dtype has the value 9"),
        (&|_, f, b| (f.accumulate, b.accumulate) = (2, 2), "accumulate has the value 2"),
        (&|_, f, b| (f.x_stride, b.x_stride) = (31, 31), "x has a stride of 31"),
        (&|_, f, b| (f.workspace_len, b.workspace_len) = (3, 3), "workspace has 3 elements"),
        (&|_, f, b| (f.status, b.status) = (f.workspace.cast(), b.workspace.cast()), "memory of"),
    ];
    for (change, want) in changes {
        let mut b = Buffers::new(sizes());
        let (mut pool, mut forward, mut backward) = (b.pool(), b.forward(), b.backward());
        change(&mut pool, &mut forward, &mut backward);
        for pass in 0..2 {
            // SAFETY: a struct that is refused is not followed, and no pointer dangles.
            let code = unsafe {
                match pass {
                    0 => kron_forward_pool(&EMULATED, &pool, &forward),
                    _ => kron_backward_pool(&EMULATED, &pool, &backward),
                }
            };
            // SAFETY: the text lives until the thread's next call.
            let said = unsafe { CStr::from_ptr(kron_last_error()) }.to_string_lossy().into_owned();
            assert!(code == KRON_INVALID && said.contains(want), "{code}: {said}");
        }
        let old = Buffers::new(NONE);
        assert!(b.y == old.y && b.dx == old.dx && b.grads == old.grads && b.status == [9; 2], "{want}");
    }
    let mut b = Buffers::new(sizes());
    let (pool, forward) = (b.pool(), b.forward());
    // SAFETY: the structs live through the call.
    assert_eq!(unsafe { kron_forward_pool(null(), &pool, &forward) }, KRON_INVALID);
    // SAFETY: as above.
    assert_eq!(unsafe { kron_forward_pool(&EMULATED, null(), &forward) }, KRON_INVALID);
}
