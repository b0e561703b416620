//! Calls on threads of the caller's: the same bits, on the runner's threads, and only for the thread that set it.

use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use kron_capi::{
    KRON_F32, KRON_OK, KronBackward, KronForward, KronOp, KronRunner, KronSizes, KronTask, kron_backward,
    kron_forward, kron_set_runner, kron_sizes,
};

const ROWS: usize = 2048;
const OP: KronOp = KronOp { d_out: 256, d_in: 512, a_out: 4, a_in: 8, rank: 4, scale: 1.5, dropout: 0.0 };

static TASKS: AtomicUsize = AtomicUsize::new(0);

/// A pointer that another thread may have.
struct Data(*mut c_void);
// SAFETY: the library's tasks may run on any thread.
unsafe impl Sync for Data {}

/// Starts a thread for each task, the last first.
unsafe extern "C" fn threads(count: usize, task: KronTask, data: *mut c_void) {
    TASKS.fetch_add(count, Relaxed);
    let data = &Data(data);
    std::thread::scope(|scope| (0..count).rev().for_each(|i| drop(scope.spawn(move || task(data.0, i)))));
}

/// Leaves all tasks to the library.
unsafe extern "C" fn idle(count: usize, _: KronTask, _: *mut c_void) {
    TASKS.fetch_add(count, Relaxed);
}

/// Returns Y, dX and the gradient.
fn outputs() -> [Vec<f32>; 3] {
    let mut sizes = KronSizes { theta: 0, t: 0, forward: 0, backward: 0, merge: 0 };
    // SAFETY: both structs live through the call.
    assert_eq!(unsafe { kron_sizes(std::ptr::null(), &OP, ROWS, &mut sizes) }, KRON_OK);
    let numbers = |len: usize, seed: usize| -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 131) % 997) as f32 / 500.0 - 1.0).collect()
    };
    let (x, theta) = (numbers(ROWS * OP.d_in, 1), numbers(sizes.theta, 2));
    let dy = numbers(ROWS * OP.d_out, 3);
    let (mut y, mut dx) = (vec![0.0_f32; ROWS * OP.d_out], vec![0.0_f32; ROWS * OP.d_in]);
    let (mut t, mut grad) = (vec![0.0_f32; sizes.t], vec![0.0_f32; sizes.theta]);
    let mut workspace = vec![0.0_f32; sizes.forward.max(sizes.backward)];
    let forward = KronForward {
        dtype: KRON_F32,
        accumulate: 0,
        rows: ROWS,
        x: x.as_ptr().cast(),
        x_stride: OP.d_in,
        y: y.as_mut_ptr().cast(),
        y_stride: OP.d_out,
        theta: theta.as_ptr(),
        t: t.as_mut_ptr(),
        workspace: workspace.as_mut_ptr(),
        workspace_len: workspace.len(),
        key: std::ptr::null(),
    };
    // SAFETY: the buffers have the lengths that the library asked for.
    assert_eq!(unsafe { kron_forward(std::ptr::null(), &OP, &forward) }, KRON_OK);
    let backward = KronBackward {
        dtype: KRON_F32,
        accumulate: 0,
        rows: ROWS,
        x: x.as_ptr().cast(),
        x_stride: OP.d_in,
        dy: dy.as_ptr().cast(),
        dy_stride: OP.d_out,
        dx: dx.as_mut_ptr().cast(),
        dx_stride: OP.d_in,
        theta: theta.as_ptr(),
        t: t.as_ptr(),
        grad: grad.as_mut_ptr(),
        workspace: workspace.as_mut_ptr(),
        workspace_len: workspace.len(),
        key: std::ptr::null(),
    };
    // SAFETY: as above.
    assert_eq!(unsafe { kron_backward(std::ptr::null(), &OP, &backward) }, KRON_OK);
    [y, dx, grad]
}

fn set(runner: KronRunner) {
    // SAFETY: both runners return when their tasks have.
    unsafe { kron_set_runner(runner) };
}

#[test]
fn a_runner_s_threads_give_the_same_bits() {
    let want = outputs();
    assert!(want.iter().all(|values| values.iter().any(|v| *v != 0.0)));
    assert_eq!(TASKS.load(Relaxed), 0);
    for runner in [threads as unsafe extern "C" fn(_, _, _), idle] {
        set(Some(runner));
        TASKS.store(0, Relaxed);
        assert!(outputs() == want);
        assert!(TASKS.load(Relaxed) >= 8, "both passes have parts");
        // Another thread has its own.
        TASKS.store(0, Relaxed);
        assert!(std::thread::spawn(outputs).join().expect("no panic") == want);
        assert_eq!(TASKS.load(Relaxed), 0);
    }
    set(None);
    assert!(outputs() == want);
    assert_eq!(TASKS.load(Relaxed), 0);
}
