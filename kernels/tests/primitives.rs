//! The emulator's primitives against a GPU's bits: against a GPU that is there,
//! and against what one has recorded.
//!
//! `tests/golden/primitives.bin` holds, for each name below in order, the
//! output words that a GPU gave for this file's inputs. Until it exists the
//! comparison reports itself as skipped; what can be said without a GPU (the
//! fragments' layout, the rounding) is tested here in any case. It is recorded by
//!
//! ```text
//! KRON_WRITE_PRIMITIVES=kernels/tests/golden/primitives.bin \
//!     cargo test -p kron-kernels --features cuda --test primitives
//! ```

mod common;
#[path = "../../tests/src/say.rs"]
mod say;

use half::{bf16, f16};
use kron_core::philox;
use kron_kernels::params::KronParams;
use kron_kernels::{Emulated, Launcher, Step, StreamHandle};
use say::say;

/// Kernel, words in and out of a lane, and what the words of the input are.
const PRIMITIVES: [(&str, usize, usize, Kind); 13] = [
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
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Any bits.
    Bits,
    /// Float32 of magnitudes from 2⁻²⁶ to 2¹⁷, which crosses f16's range.
    Float,
    /// The same, and now and then a number that is none, infinite, subnormal or too large.
    Round,
    /// Float32 in (−1, 1): a product and a sum of these are of like size, so rounding twice shows.
    Near,
    /// Pairs of small numbers, an infinity, NaN and subnormals in A; float32 from the seventh word on.
    Bf16,
    F16,
}

/// NaN of either sign, infinities, a signed zero, subnormals of each format, and what overflows when it is rounded.
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

fn input(stream: u32, words: usize, kind: Kind) -> Vec<u32> {
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

/// What launches primitive `index`.
fn step(index: usize) -> Step {
    let kernel = PRIMITIVES[index].0.try_into().expect("a short name");
    Step { kernel, grid: 1, block: 32, shared: 512, col_tiles: 1, cols: 0, row_chunks: 1, chunk_rows: 1 }
}

/// Input and emulated output of primitive `index`.
fn run(index: usize) -> (Vec<u32>, Vec<u32>) {
    let (_, words_in, words_out, kind) = PRIMITIVES[index];
    let x = input(index as u32, words_in, kind);
    let mut y = vec![0u32; 32 * words_out];
    let params = KronParams { x: x.as_ptr() as _, y: y.as_mut_ptr() as _, ..KronParams::default() };
    // SAFETY: a primitive reads its words of x and writes its words of y, and no more.
    unsafe { Emulated::new().launch(&step(index), &params, StreamHandle::DEFAULT) }
        .expect("a primitive runs");
    (x, y)
}

/// That the emulator gives what a GPU gave: `words` of all primitives, one after another.
fn same_as(mut words: impl Iterator<Item = u32>) {
    for (index, (name, _, _, kind)) in PRIMITIVES.into_iter().enumerate() {
        for (i, got) in run(index).1.into_iter().enumerate() {
            let recorded = words.next().expect("the golden file has a word for every output");
            let (a, b) = (f32::from_bits(got), f32::from_bits(recorded));
            // Tensor cores add in an order of their own: 16 products and a sum below 17.
            let mma = matches!(kind, Kind::Bf16 | Kind::F16);
            let near = |a: f32, b: f32| a == b || (a - b).abs() <= 17.0 * 17.0 / (1 << 24) as f32;
            // A NaN's bits are the device's own, but where they are rounded to: there they are documented.
            let wide = mma || kind == Kind::Round && i % 4 >= 2;
            let same = got == recorded || wide && a.is_nan() && b.is_nan() || mma && near(a, b);
            assert!(same, "{name} word {i}: emulated {got:#010x}, a GPU {recorded:#010x}");
        }
    }
    assert_eq!(words.next(), None, "the golden file has more words than there are outputs");
}

#[test]
fn recorded_bits() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/primitives.bin");
    let Ok(golden) = std::fs::read(path) else {
        return say("skipped: no GPU has recorded tests/golden/primitives.bin yet");
    };
    same_as(golden.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
}

#[cfg(feature = "cuda")]
#[test]
fn bits_of_this_gpu() {
    let gpu = match kron_kernels::Gpu::new(0) {
        Ok(gpu) => gpu,
        Err(e) => return say(format_args!("skipped: {e}")),
    };
    let on_gpu = |index: usize| {
        let (name, words_in, words_out, kind) = PRIMITIVES[index];
        let floats: Vec<f32> = input(index as u32, words_in, kind).into_iter().map(f32::from_bits).collect();
        let x = gpu.upload(&floats).expect("a little memory");
        let mut y = gpu.upload(&vec![0f32; 32 * words_out]).expect("a little memory");
        let params = KronParams {
            x: x.slice().pointer() as _,
            y: y.slice_mut().pointer() as _,
            ..KronParams::default()
        };
        // SAFETY: a primitive reads its words of x and writes its words of y, and no more.
        unsafe { gpu.launch(&step(index), &params, StreamHandle::DEFAULT) }
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut out = vec![0f32; 32 * words_out];
        y.read(&mut out).unwrap_or_else(|e| panic!("{name}: {e}"));
        out.into_iter().map(f32::to_bits)
    };
    let words: Vec<u32> = (0..PRIMITIVES.len()).flat_map(on_gpu).collect();
    if let Some(path) = std::env::var_os("KRON_WRITE_PRIMITIVES") {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        std::fs::write(&path, bytes).expect("the golden file can be written");
    }
    same_as(words.into_iter());
}

#[test]
fn mma_is_a_matrix_product_in_the_documented_layout() {
    for (index, k_len, f16_bits) in [(0, 16, false), (1, 8, false), (2, 16, true), (3, 8, true)] {
        let (x, y) = run(index);
        let number = |word: u32, high: usize| {
            let bits = (word >> (16 * high)) as u16;
            if f16_bits { f16::from_bits(bits).to_f64() } else { bf16::from_bits(bits).to_f64() }
        };
        // (row, col) of D, by the lane and register that the PTX manual gives.
        let word = |lane: usize, i: usize| x[lane * 10 + i];
        let a = |m: usize, k: usize| number(word(m % 8 * 4 + k % 8 / 2, m / 8 + k / 8 * 2), k % 2);
        let b = |k: usize, n: usize| number(word(n * 4 + k % 8 / 2, 4 + k / 8), k % 2);
        for m in 0..16 {
            for n in 0..8 {
                let (lane, i) = (m % 8 * 4 + n / 2, m / 8 * 2 + n % 2);
                let c = f64::from(f32::from_bits(word(lane, 6 + i)));
                let want = c + (0..k_len).map(|k| a(m, k) * b(k, n)).sum::<f64>();
                let got = f64::from(f32::from_bits(y[lane * 4 + i]));
                let near = got == want || (got - want).abs() < 17.0 * 17.0 / (1 << 24) as f64;
                assert!(near || got.is_nan() && want.is_nan(), "{m},{n}: {got} and {want}");
                let special = if m == 4 { want.is_infinite() } else { want.is_nan() == (m == 7) };
                assert!(special, "{m},{n}: {want} of an infinity in row 4 and a NaN in row 7");
            }
        }
    }
}

#[test]
fn ldmatrix_spreads_rows_over_lanes() {
    for (index, count, transposed) in [(4, 2, false), (5, 2, true), (6, 4, false), (7, 4, true)] {
        let (x, y) = run(index);
        let element = |row: usize, col: usize| match row {
            5 => 0, // the copy that was asked to bring zeros
            _ => (x[row * 4 + col / 2] >> (16 * (col % 2))) as u16,
        };
        for lane in 0..32 {
            for matrix in 0..count {
                for half in 0..2 {
                    let (g, h) = (lane / 4, lane % 4 * 2 + half);
                    let (row, col) = if transposed { (h, g) } else { (g, h) };
                    let got = (y[lane * count + matrix] >> (16 * half)) as u16;
                    assert_eq!(got, element(matrix * 8 + row, col), "matrix {matrix} lane {lane}");
                }
            }
        }
    }
}

#[test]
fn rounding_is_to_nearest_even() {
    for (index, is_f16) in [(8, false), (9, true)] {
        let (x, y) = run(index);
        let round = |v: f32| match (v.is_nan(), is_f16) {
            (true, _) => 0x7fff, // PTX ISA, cvt
            (_, true) => f16::from_f32(v).to_bits(),
            (_, false) => bf16::from_f32(v).to_bits(),
        };
        let wide = |v: u16| if is_f16 { f16::from_bits(v).to_f32() } else { bf16::from_bits(v).to_f32() };
        for lane in 0..32 {
            let (low, high) = (x[2 * lane], x[2 * lane + 1]);
            let both = u32::from(round(f32::from_bits(low))) | u32::from(round(f32::from_bits(high))) << 16;
            assert_eq!(y[4 * lane..4 * lane + 2], [both, both], "{low:#x} {high:#x}");
            for (got, back) in y[4 * lane + 2..4 * lane + 4].iter().zip([low as u16, (high >> 16) as u16]) {
                let (got, back) = (f32::from_bits(*got), wide(back));
                assert!(
                    got.to_bits() == back.to_bits() || got.is_nan() && back.is_nan(),
                    "{low:#x} {high:#x}"
                );
            }
        }
    }
}

#[test]
fn products_are_whole_and_rounded_once() {
    let (x, y) = run(11);
    let (z, w) = run(12);
    let mut twice = 0;
    for lane in 0..32 {
        let product = u64::from(x[2 * lane]) * u64::from(x[2 * lane + 1]);
        assert_eq!(y[lane], (product >> 32) as u32, "{:#x} × {:#x}", x[2 * lane], x[2 * lane + 1]);
        let [a, b, c] = [0, 1, 2].map(|i| f32::from_bits(z[3 * lane + i]));
        assert_eq!(w[lane], a.mul_add(b, c).to_bits(), "{a} × {b} + {c}");
        twice += usize::from(a * b + c != f32::from_bits(w[lane]));
    }
    assert!(twice > 0, "inputs on which rounding the product would show");
}
