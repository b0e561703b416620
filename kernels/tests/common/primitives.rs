//! The primitives' micro kernels, their inputs and their emulated outputs.

use half::{bf16, f16};
use kron_core::philox;
use kron_kernels::params::KronParams;
use kron_kernels::{Emulated, Launcher, Name, Step, StreamHandle};

/// Kernel, words in and out for each lane, and the kind of the input words.
pub const PRIMITIVES: [(&str, usize, usize, Kind); 14] = [
    ("primitive_mma_bf16_k16", 10, 4, Kind::Bf16),
    ("primitive_mma_bf16_k8", 10, 4, Kind::Bf16),
    ("primitive_mma_f16_k16", 10, 4, Kind::F16),
    ("primitive_mma_f16_k8", 10, 4, Kind::F16),
    ("primitive_ldmatrix_x2", 4, 2, Kind::Bits),
    ("primitive_ldmatrix_x2_trans", 4, 2, Kind::Bits),
    ("primitive_ldmatrix_x4", 4, 4, Kind::Bits),
    ("primitive_ldmatrix_x4_trans", 4, 4, Kind::Bits),
    ("primitive_round_bf16", 2, 4, Kind::Round),
    ("primitive_round_f16", 2, 4, Kind::Round),
    ("primitive_shuffle", 1, 5, Kind::Float),
    ("primitive_umulhi", 2, 1, Kind::Bits),
    ("primitive_fma", 3, 1, Kind::Near),
    ("primitive_ballot", 1, 3, Kind::Bits),
];

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// Any bits.
    Bits,
    /// Float32 of magnitudes from 2⁻²⁶ to 2¹⁷, which crosses f16's range.
    Float,
    /// As `Float`, with some NaN, infinite, subnormal and too large values.
    Round,
    /// Float32 in (−1, 1): a product and a sum of these are of like size, so rounding twice shows.
    Near,
    /// Pairs of bf16: small values, an infinity, NaN and subnormals in A; float32 from the seventh word on.
    Bf16,
    /// As `Bf16`, in f16.
    F16,
}

/// NaN of either sign, infinities, a signed zero, subnormals of each format, and values that overflow in rounding.
const SPECIAL: [u32; 12] = [
    0x7fc0_0000,
    0xff80_0001,
    0x7f80_0000,
    0xff80_0000,
    0x8000_0000,
    0x0000_0001,
    0x8040_0000,
    0x3380_0000,
    0x3300_0000,
    0x7f7f_ffff,
    0x477f_f000,
    0xc77f_efff,
];

pub fn input(stream: u32, words: usize, kind: Kind) -> Vec<u32> {
    let unit = |w: u32| (w >> 8) as f32 / (1 << 23) as f32 - 1.0;
    (0..32 * words)
        .map(|i| {
            let [w, v, ..] = philox([i as u32, stream, 1, 2], [3, 4]);
            // Of mma's words in A, those of three lanes: rows 2, 4 and 7 of D.
            let first = |f: fn(f32) -> u16| match (i / words, i % words) {
                (9, 0..4) => (w & 0x7f) as u16, // subnormal in both formats
                (18, 0) => f(f32::INFINITY),
                (29, 0) => f(f32::NAN),
                _ => f(unit(w)),
            };
            let pair = |f: fn(f32) -> u16| u32::from(first(f)) | u32::from(f(unit(v))) << 16;
            match kind {
                Kind::Bits => w,
                Kind::Round if i % 3 == 1 => SPECIAL[i / 3 % SPECIAL.len()],
                Kind::Float | Kind::Round => (unit(w) * 2f32.powi((v % 44) as i32 - 26)).to_bits(),
                Kind::Near => unit(w).to_bits(),
                _ if i % words >= 6 => unit(w).to_bits(),
                Kind::Bf16 => pair(|v| bf16::from_f32(v).to_bits()),
                Kind::F16 => pair(|v| f16::from_f32(v).to_bits()),
            }
        })
        .collect()
}

/// Returns the launch of primitive `index`.
pub fn step(index: usize) -> Step {
    let kernel = PRIMITIVES[index].0.try_into().expect("a short name");
    plain_step(kernel, 1, 32, 512)
}

/// Returns a launch that depends on no problem: a kernel, its blocks, their threads and their shared bytes.
pub fn plain_step(kernel: Name, grid: u32, block: u32, shared: u32) -> Step {
    Step {
        kernel,
        grid,
        block,
        shared,
        col_tiles: 1,
        cols: 0,
        row_chunks: 1,
        chunk_rows: 1,
        tiles: 0,
        resident: 1,
        early: false,
    }
}

/// Input and emulated output of primitive `index`.
pub fn run(index: usize) -> (Vec<u32>, Vec<u32>) {
    let (_, words_in, words_out, kind) = PRIMITIVES[index];
    let x = input(index as u32, words_in, kind);
    let mut y = vec![0u32; 32 * words_out];
    let params = KronParams { x: x.as_ptr() as _, y: y.as_mut_ptr() as _, ..KronParams::default() };
    // SAFETY: a primitive only reads its words of x and writes its words of y.
    unsafe { Emulated::new().launch(&step(index), &params, StreamHandle::DEFAULT) }
        .expect("a primitive runs");
    (x, y)
}

/// Fails unless the emulator reproduces a GPU's outputs: the `words` of all primitives, one after another.
pub fn same_as(mut words: impl Iterator<Item = u32>) {
    for (index, (name, _, _, kind)) in PRIMITIVES.into_iter().enumerate() {
        for (i, got) in run(index).1.into_iter().enumerate() {
            let recorded = words.next().expect("the golden file has a word for every output");
            let (a, b) = (f32::from_bits(got), f32::from_bits(recorded));
            // Tensor cores add in an order of their own: 16 products and a sum below 17.
            let mma = matches!(kind, Kind::Bf16 | Kind::F16);
            let near = |a: f32, b: f32| a == b || (a - b).abs() <= 17.0 * 17.0 / (1 << 24) as f32;
            // A NaN's bits depend on the device, except where rounding produces the NaN: those are documented.
            let wide = mma || kind == Kind::Round && i % 4 >= 2;
            let same = got == recorded || wide && a.is_nan() && b.is_nan() || mma && near(a, b);
            assert!(same, "{name} word {i}: emulated {got:#010x}, a GPU {recorded:#010x}");
        }
    }
    assert_eq!(words.next(), None, "the golden file has more words than there are outputs");
}
