//! Generated overlaps of every pair of a call's pointers: a call is refused exactly if bytes that it
//! writes belong to another of its buffers, and otherwise gives the bits of separate buffers.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::{null, null_mut};

use kron_capi::{
    KRON_BF16, KRON_EMULATED, KRON_F32, KRON_INVALID, KRON_OK, KronBackward, KronDevice, KronForward,
    KronKey, KronMerge, KronOp, KronSizes, kron_backward, kron_forward, kron_last_error, kron_merge,
    kron_sizes,
};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

const ROWS: usize = 5;
const OP: KronOp = KronOp { d_out: 12, d_in: 16, a_out: 3, a_in: 2, rank: 2, scale: 1.5, dropout: 0.25 };
/// Placements of each pair of buffers.
const PLACEMENTS: usize = 120;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Read,
    Written,
    /// Read before anything is written, so it may lie anywhere.
    Copied,
}

/// A buffer of a call, in bytes of an arena.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    name: &'static str,
    role: Role,
    start: usize,
    runs: usize,
    width: usize,
    stride: usize,
}

impl Buffer {
    fn extent(&self) -> usize {
        (self.runs - 1) * self.stride + self.width
    }

    fn bytes(&self) -> impl Iterator<Item = usize> {
        let Self { start, runs, width, stride, .. } = *self;
        (0..runs).flat_map(move |i| start + i * stride..start + i * stride + width)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let own: BTreeSet<usize> = self.bytes().collect();
        other.bytes().any(|byte| own.contains(&byte))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Forward,
    Backward,
    Merge,
}

/// One call's pass, dtype and place.
#[derive(Clone, Copy, Debug)]
struct Case {
    pass: Pass,
    dtype: u32,
    device: Option<KronDevice>,
}

impl Case {
    fn device(&self) -> *const KronDevice {
        self.device.as_ref().map_or(null(), |device| device)
    }

    fn sizes(&self) -> KronSizes {
        let mut sizes = KronSizes { theta: 0, t: 0, forward: 0, backward: 0, merge: 0 };
        // SAFETY: the pointers are to structs or null.
        let status = unsafe { kron_sizes(self.device(), &OP, ROWS, &mut sizes) };
        assert_eq!(status, KRON_OK);
        sizes
    }

    /// The buffers of the call, with rows `gap` bytes apart.
    fn buffers(&self, mut gap: impl FnMut() -> usize) -> Vec<Buffer> {
        let (sizes, element) = (self.sizes(), if self.dtype == KRON_F32 { 4 } else { 2 });
        let mut matrix = |name, role, runs, cols: usize| {
            let width = cols * element;
            Buffer { name, role, start: 0, runs, width, stride: (width + gap()).next_multiple_of(8) }
        };
        let vector = |name, role, len: usize| {
            let width = 4 * len;
            Buffer { name, role, start: 0, runs: 1, width, stride: width }
        };
        let key = Buffer { name: "key", role: Role::Copied, start: 0, runs: 1, width: 16, stride: 16 };
        let theta = vector("theta", Role::Read, sizes.theta);
        match self.pass {
            Pass::Forward => vec![
                matrix("x", Role::Read, ROWS, OP.d_in),
                matrix("y", Role::Written, ROWS, OP.d_out),
                theta,
                vector("t", Role::Written, sizes.t),
                vector("workspace", Role::Written, sizes.forward),
                key,
            ],
            Pass::Backward => vec![
                matrix("x", Role::Read, ROWS, OP.d_in),
                matrix("dy", Role::Read, ROWS, OP.d_out),
                matrix("dx", Role::Written, ROWS, OP.d_in),
                theta,
                vector("t", Role::Read, sizes.t),
                vector("grad", Role::Written, sizes.theta),
                vector("workspace", Role::Written, sizes.backward),
                key,
            ],
            Pass::Merge => vec![
                matrix("w", Role::Written, OP.d_out - 1, OP.d_in),
                theta,
                vector("workspace", Role::Written, sizes.merge),
            ],
        }
    }

    fn call(&self, arena: &mut [u64], buffers: &[Buffer]) -> (c_int, String) {
        let base = arena.as_mut_ptr().cast::<u8>();
        let find = |name| buffers.iter().find(|b| b.name == name).expect("a buffer of the call");
        let at = |name| base.wrapping_add(find(name).start).cast::<c_void>();
        let stride = |name| find(name).stride / if self.dtype == KRON_F32 { 4 } else { 2 };
        let workspace_len = find("workspace").width / 4;
        let (dtype, rows, accumulate, workspace) = (self.dtype, ROWS, 1, at("workspace").cast());
        let theta = at("theta").cast_const().cast();
        // SAFETY: every buffer lies in the arena, which nothing else borrows, with the elements of its struct.
        let status = unsafe {
            match self.pass {
                Pass::Forward => {
                    let (x, x_stride, y, y_stride) = (at("x"), stride("x"), at("y"), stride("y"));
                    let (t, key) = (at("t").cast(), at("key").cast_const().cast::<KronKey>());
                    let call = KronForward {
                        dtype,
                        accumulate,
                        rows,
                        x,
                        x_stride,
                        y,
                        y_stride,
                        theta,
                        t,
                        workspace,
                        workspace_len,
                        key,
                    };
                    kron_forward(self.device(), &OP, &call)
                }
                Pass::Backward => {
                    let (x, x_stride, dy, dy_stride) = (at("x"), stride("x"), at("dy"), stride("dy"));
                    let (dx, dx_stride, grad) = (at("dx"), stride("dx"), at("grad").cast());
                    let (t, key) = (at("t").cast_const().cast(), at("key").cast_const().cast::<KronKey>());
                    let call = KronBackward {
                        dtype,
                        accumulate,
                        rows,
                        x,
                        x_stride,
                        dy,
                        dy_stride,
                        dx,
                        dx_stride,
                        theta,
                        t,
                        grad,
                        workspace,
                        workspace_len,
                        key,
                    };
                    kron_backward(self.device(), &OP, &call)
                }
                Pass::Merge => {
                    let (w, w_stride, rows, first_row) = (at("w"), stride("w"), OP.d_out - 1, 1);
                    let call = KronMerge {
                        dtype,
                        accumulate,
                        rows,
                        first_row,
                        w,
                        w_stride,
                        theta,
                        workspace,
                        workspace_len,
                    };
                    kron_merge(self.device(), &OP, &call)
                }
            }
        };
        // SAFETY: the text ends with a zero and lives until this thread's next call.
        (status, unsafe { CStr::from_ptr(kron_last_error()) }.to_string_lossy().into_owned())
    }
}

/// Copies a buffer's bytes from one arena to its place in another.
fn copy(from: &[u64], buffer: &Buffer, to: &mut [u64], place: &Buffer) {
    let from: &[u8] = bytemuck::cast_slice(from);
    let to: &mut [u8] = bytemuck::cast_slice_mut(to);
    buffer.bytes().zip(place.bytes()).for_each(|(a, b)| to[b] = from[a]);
}

/// Places each buffer after the one before, and returns the end.
fn place_apart(buffers: &mut [Buffer], first: usize) -> usize {
    buffers.iter_mut().fold(first, |start, buffer| {
        buffer.start = start;
        (start + buffer.extent()).next_multiple_of(64)
    })
}

#[test]
fn overlaps_are_refused_where_a_call_writes_and_harmless_elsewhere() {
    let mut rng = Pcg64::seed_from_u64(11);
    let emulated = KronDevice { device: KRON_EMULATED, stream: null_mut() };
    let (mut refused, mut allowed, mut interleaved) = (0, BTreeSet::new(), 0);
    let mut alone = BTreeSet::new();
    for pass in [Pass::Forward, Pass::Backward, Pass::Merge] {
        let count = Case { pass, dtype: KRON_F32, device: None }.buffers(|| 0).len();
        let pairs = (0..count).flat_map(|b| (0..b).map(move |a| (a, b)));
        for ((a, b), i) in pairs.flat_map(|pair| (0..PLACEMENTS).map(move |i| (pair, i))) {
            let dtype = if rng.random() { KRON_F32 } else { KRON_BF16 };
            let device = (cfg!(debug_assertions) && i % 12 == 0).then_some(emulated);
            let case = Case { pass, dtype, device };
            // Often one distance for all rows: columns of one matrix.
            let shared = rng.random_bool(0.6).then(|| rng.random_range(0..12) * 8);
            let mut buffers = case.buffers(|| shared.unwrap_or_else(|| rng.random_range(0..8) * 8));
            if rng.random_bool(0.5) {
                let widest = buffers.iter().filter(|b| b.runs > 1).map(|b| b.stride).max().unwrap_or(0);
                buffers.iter_mut().filter(|b| b.runs > 1).for_each(|b| b.stride = widest);
            }
            // The pair in the middle, the second somewhere around the first; the others after them.
            let (pair_a, pair_b) = (buffers[a], buffers[b]);
            let middle = pair_b.extent().next_multiple_of(8) + 64;
            let around = pair_a.extent() + pair_b.extent();
            let start = (middle - pair_b.extent().next_multiple_of(8)) / 8;
            let end = place_apart(&mut buffers, middle + around + 128);
            buffers[a].start = middle;
            buffers[b].start = 8 * rng.random_range(start..=(middle + pair_a.extent()).div_ceil(8));
            let mut arena: Vec<u64> = (0..end / 8 + 1).map(|_| rng.random::<u64>() & MODERATE).collect();
            let before = arena.clone();

            // The same contents in separate buffers.
            let mut apart = buffers.clone();
            let end = place_apart(&mut apart, 0);
            let mut separate = vec![0_u64; end / 8 + 1];
            buffers.iter().zip(&apart).for_each(|(from, to)| copy(&arena, from, &mut separate, to));

            let [first, second] = [buffers[a], buffers[b]];
            let overlap = first.overlaps(&second);
            let roles = [first.role, second.role];
            let refuse = overlap && roles.contains(&Role::Written) && !roles.contains(&Role::Copied);
            let (status, message) = case.call(&mut arena, &buffers);
            let what = format!("{case:?}: {first:?} and {second:?}: {status}: {message}");
            if refuse {
                assert_eq!(status, KRON_INVALID, "{what}");
                let names = [(first, second), (second, first)]
                    .map(|(a, b)| format!("{} has memory of {}, but", a.name, b.name));
                assert!(names.iter().any(|said| message.starts_with(said)), "{what}");
                assert!(arena == before, "{what}: a refused call wrote");
                refused += 1;
                alone.insert((format!("{pass:?}"), first.name, second.name));
                continue;
            }
            assert_eq!(status, KRON_OK, "{what}");
            let (status, message) = case.call(&mut separate, &apart);
            assert_eq!(status, KRON_OK, "{message}");
            // A key in memory that is written is gone, like the scratch.
            for (buffer, place) in buffers.iter().zip(&apart) {
                if buffer.role == Role::Written && buffer.name != "workspace" {
                    let mut got = vec![0_u64; separate.len()];
                    copy(&arena, buffer, &mut got, place);
                    let (got, want) =
                        (bytemuck::cast_slice::<_, u8>(&got), bytemuck::cast_slice::<_, u8>(&separate));
                    assert!(
                        place.bytes().all(|byte| got[byte] == want[byte]),
                        "{what}: {} differs",
                        buffer.name
                    );
                }
            }
            interleaved += usize::from(
                !overlap
                    && first.start < second.start + second.extent()
                    && second.start < first.start + first.extent(),
            );
            if overlap {
                allowed.insert((format!("{pass:?}"), first.name, second.name));
            }
        }
    }
    // Forward has 5 buffers and 9 pairs with one that is written, backward 7 and 15, merge 3 and 3.
    assert_eq!(alone.len(), 9 + 15 + 3, "{alone:?}");
    // Pairs of what is read, and the key with everything.
    assert_eq!(allowed.len(), 1 + 5 + 6 + 7, "{allowed:?}");
    assert!(refused > 1000 && interleaved > 100, "{refused} refused, {interleaved} interleaved");
}

/// Bits that make every 16-bit and 32-bit pattern a moderate number: its exponent has no high bit.
const MODERATE: u64 = 0xbfff_bfff_bfff_bfff;
