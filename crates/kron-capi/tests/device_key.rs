//! A key in device memory is added to the key of a call on a device, for the thread that set it.

use std::ptr::{null, null_mut};

use kron_capi::{
    KRON_EMULATED, KRON_F32, KRON_INVALID, KRON_OK, KronDevice, KronForward, KronKey, KronOp, KronSizes,
    kron_forward, kron_set_device_key, kron_sizes,
};

const ROWS: usize = 6;
const OP: KronOp = KronOp { d_out: 12, d_in: 32, a_out: 3, a_in: 2, rank: 2, scale: 1.5, dropout: 0.25 };
const EMULATED: KronDevice = KronDevice { device: KRON_EMULATED, stream: null_mut() };

/// Returns T of a forward call.
fn t(device: *const KronDevice, key: Option<KronKey>) -> Vec<f32> {
    let mut sizes = KronSizes { theta: 0, t: 0, forward: 0, backward: 0, merge: 0 };
    // SAFETY: the structs live through the call.
    assert_eq!(unsafe { kron_sizes(device, &OP, ROWS, &mut sizes) }, KRON_OK);
    let (x, theta) = (vec![1.0_f32; ROWS * OP.d_in], vec![0.5_f32; sizes.theta]);
    let (mut y, mut t) = (vec![0.0_f32; ROWS * OP.d_out], vec![0.0_f32; sizes.t]);
    let mut workspace = vec![0.0_f32; sizes.forward];
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
        key: key.as_ref().map_or(null(), std::ptr::from_ref),
    };
    // SAFETY: the buffers have the lengths that the library asked for.
    assert_eq!(unsafe { kron_forward(device, &OP, &forward) }, KRON_OK);
    t
}

#[test]
fn keys_are_added_on_a_device() {
    let key = |seed, offset| Some(KronKey { seed, offset });
    let on_host = t(null(), key(2, 3));
    let memory = KronKey { seed: 5, offset: u64::MAX };
    // SAFETY: the numbers live until null is set; a release build has no device to read them.
    assert_eq!(unsafe { kron_set_device_key(&memory) }, KRON_OK);
    assert_eq!(t(null(), key(2, 3)), on_host);
    if cfg!(debug_assertions) {
        let (added, plain) = (t(&EMULATED, key(2, 3)), t(&EMULATED, None));
        // SAFETY: null adds nothing.
        assert_eq!(unsafe { kron_set_device_key(null()) }, KRON_OK);
        assert_eq!(added, t(&EMULATED, key(7, 2)));
        assert_ne!(added, t(&EMULATED, key(2, 3)));
        assert_eq!(plain, t(&EMULATED, None));
        // SAFETY: as above.
        assert_eq!(unsafe { kron_set_device_key(&memory) }, KRON_OK);
        let other = std::thread::spawn(move || t(&EMULATED, key(2, 3))).join().expect("no panic");
        assert_ne!(added, other);
    }
    // SAFETY: the pointer is refused unread.
    assert_eq!(unsafe { kron_set_device_key((&raw const memory).byte_add(1)) }, KRON_INVALID);
    // SAFETY: null adds nothing.
    assert_eq!(unsafe { kron_set_device_key(null()) }, KRON_OK);
}
