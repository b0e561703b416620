//! Blocks of 32 values with one scale.

use half::f16;

/// Returns the float16 at the start of a block.
pub(super) fn half(bytes: &[u8]) -> f32 {
    bytes.first_chunk().map_or(0.0, |bytes| f16::from_le_bytes(*bytes).to_f32())
}

/// v = d·(q − 8)
pub(super) fn q4_0(block: &[u8], to: &mut [f32]) {
    let (d, quants) = (half(block), &block[2..]);
    let (low, high) = to.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
        *low = f32::from((q & 15) as i8 - 8) * d;
        *high = f32::from((q >> 4) as i8 - 8) * d;
    }
}

/// v = d·q + m
pub(super) fn q4_1(block: &[u8], to: &mut [f32]) {
    let (d, m, quants) = (half(block), half(&block[2..]), &block[4..]);
    let (low, high) = to.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
        *low = f32::from(q & 15) * d + m;
        *high = f32::from(q >> 4) * d + m;
    }
}

/// Returns the fifth bits of 32 values.
fn fifth_bits(block: &[u8]) -> u32 {
    block.first_chunk().map_or(0, |bits| u32::from_le_bytes(*bits))
}

/// Returns the quants number j and j + 16, five bits each.
fn five_bits(bits: u32, q: u8, j: usize) -> [u8; 2] {
    [q & 15 | (bits >> j << 4) as u8 & 16, q >> 4 | (bits >> (j + 16) << 4) as u8 & 16]
}

/// v = d·(q − 16)
pub(super) fn q5_0(block: &[u8], to: &mut [f32]) {
    let (d, bits, quants) = (half(block), fifth_bits(&block[2..]), &block[6..]);
    let (low, high) = to.split_at_mut(16);
    for (j, ((low, high), q)) in low.iter_mut().zip(high).zip(quants).enumerate() {
        [*low, *high] = five_bits(bits, *q, j).map(|q| f32::from(q as i8 - 16) * d);
    }
}

/// v = d·q + m
pub(super) fn q5_1(block: &[u8], to: &mut [f32]) {
    let (d, m, bits, quants) = (half(block), half(&block[2..]), fifth_bits(&block[4..]), &block[8..]);
    let (low, high) = to.split_at_mut(16);
    for (j, ((low, high), q)) in low.iter_mut().zip(high).zip(quants).enumerate() {
        [*low, *high] = five_bits(bits, *q, j).map(|q| f32::from(q) * d + m);
    }
}

/// v = d·q
pub(super) fn q8_0(block: &[u8], to: &mut [f32]) {
    let (d, quants) = (half(block), &block[2..]);
    to.iter_mut().zip(quants).for_each(|(v, q)| *v = f32::from(*q as i8) * d);
}
