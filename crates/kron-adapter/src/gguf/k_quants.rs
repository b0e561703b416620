//! Blocks of 256 values with scales of their own for every 16 or 32.

use super::quants::half;

/// Splits a block into its fields, in their order.
#[inline(always)]
fn fields<const N: usize>(mut block: &[u8], lens: [usize; N]) -> [&[u8]; N] {
    lens.map(|len| {
        let (field, rest) = block.split_at(len);
        block = rest;
        field
    })
}

/// v = d·scale·q − dmin·min, q of 2 bits.
#[inline(always)]
pub(super) fn q2(block: &[u8], to: &mut [f32]) {
    let [scales, quants, d, dmin] = fields(block, [16, 64, 2, 2]);
    let (d, dmin) = (half(d), half(dmin));
    for (i, to) in to.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(scales[i] & 15), dmin * f32::from(scales[i] >> 4));
        let (first, shift) = (32 * (i / 8) + 16 * (i % 2), 2 * (i % 8 / 2));
        for (v, q) in to.iter_mut().zip(&quants[first..]) {
            *v = scale * f32::from((q >> shift) & 3) - min;
        }
    }
}

/// v = d·(scale − 32)·q, q of 3 bits in −4..4.
#[inline(always)]
pub(super) fn q3(block: &[u8], to: &mut [f32]) {
    let [high, quants, scales, d] = fields(block, [32, 64, 12, 2]);
    let d = half(d);
    for (i, to) in to.chunks_exact_mut(16).enumerate() {
        let low = if i < 8 { scales[i] & 15 } else { scales[i - 8] >> 4 };
        let bits = low | ((scales[8 + i % 4] >> (2 * (i / 4))) & 3) << 4;
        let scale = d * f32::from(bits as i8 - 32);
        let (at, shift) = (16 * (i % 2), 2 * (i % 8 / 2));
        let bit = 1u8 << (i / 2);
        let pairs = quants[32 * (i / 8) + at..].iter().zip(&high[at..]);
        for (v, (q, high)) in to.iter_mut().zip(pairs) {
            let offset = if high & bit == 0 { 4 } else { 0 };
            *v = scale * f32::from(((q >> shift) & 3) as i8 - offset);
        }
    }
}

/// Returns scale and minimum number i of 8, six bits each, packed into twelve bytes.
#[inline(always)]
fn scale_and_min(packed: &[u8], i: usize) -> (f32, f32) {
    let (scale, min) = match i {
        0..4 => (packed[i] & 63, packed[i + 4] & 63),
        _ => (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4),
    };
    (scale.into(), min.into())
}

/// v = d·scale·q − dmin·min, q of 4 bits.
#[inline(always)]
pub(super) fn q4(block: &[u8], to: &mut [f32]) {
    let [d, dmin, scales, quants] = fields(block, [2, 2, 12, 128]);
    let (d, dmin) = (half(d), half(dmin));
    for (i, to) in to.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, i);
        let (scale, min, shift) = (d * scale, dmin * min, 4 * (i % 2));
        for (v, q) in to.iter_mut().zip(&quants[32 * (i / 2)..]) {
            *v = scale * f32::from((q >> shift) & 15) - min;
        }
    }
}

/// v = d·scale·q − dmin·min, q of 5 bits.
#[inline(always)]
pub(super) fn q5(block: &[u8], to: &mut [f32]) {
    let [d, dmin, scales, high, quants] = fields(block, [2, 2, 12, 32, 128]);
    let (d, dmin) = (half(d), half(dmin));
    for (i, to) in to.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, i);
        let (scale, min, shift) = (d * scale, dmin * min, 4 * (i % 2));
        for (v, (q, high)) in to.iter_mut().zip(quants[32 * (i / 2)..].iter().zip(high)) {
            *v = scale * f32::from((q >> shift) & 15 | ((high >> i) & 1) << 4) - min;
        }
    }
}

/// v = d·scale·q, q of 6 bits in −32..32.
#[inline(always)]
pub(super) fn q6(block: &[u8], to: &mut [f32]) {
    let [low, high, scales, d] = fields(block, [128, 64, 16, 2]);
    let d = half(d);
    for (i, to) in to.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[i] as i8);
        // 32 values after each other share a shift; the two halves of 128 have bytes of their own.
        let (part, at) = (i % 8 / 2, 16 * (i % 2));
        let lows = &low[64 * (i / 8) + 32 * (part % 2) + at..];
        let highs = &high[32 * (i / 8) + at..];
        for (v, (low, high)) in to.iter_mut().zip(lows.iter().zip(highs)) {
            let q = (low >> (4 * (part / 2))) & 15 | ((high >> (2 * part)) & 3) << 4;
            *v = scale * f32::from(q as i8 - 32);
        }
    }
}
