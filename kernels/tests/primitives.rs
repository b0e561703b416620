//! The emulator's primitives, compared with recorded bits of a GPU and with their documentation.
//!
//! `tests/golden/primitives.bin` contains a GPU's output words for the inputs of
//! `common/primitives.rs`, one primitive after another. Without that file the comparison reports
//! itself as skipped. The layout of fragments and the rounding need no GPU. The file is recorded by
//!
//! ```text
//! KRON_WRITE_PRIMITIVES=kernels/tests/golden/primitives.bin \
//!     cargo test -p kron-kernels --features cuda --test gpu bits_of_this_gpu
//! ```

mod common;
#[path = "../../tests/src/notice.rs"]
mod notice;

use common::primitives::{run, same_as};
use half::{bf16, f16};
use notice::notice;

#[test]
fn recorded_bits() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/primitives.bin");
    let Ok(golden) = std::fs::read(path) else {
        return notice("skipped: no GPU has recorded tests/golden/primitives.bin yet");
    };
    same_as(golden.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
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

#[test]
fn a_ballot_has_a_bit_for_each_lane() {
    let (x, y) = run(13);
    let votes = (0..32).filter(|&lane| x[lane] % 2 == 1).fold(0, |votes, lane| votes | 1u32 << lane);
    for lane in 0..32 {
        let lowest = if x[lane] == 0 { 0 } else { x[lane].trailing_zeros() + 1 };
        assert_eq!(y[3 * lane..3 * lane + 3], [votes, x[lane].count_ones(), lowest], "{:#x}", x[lane]);
    }
}
