//! Blocks of 32 values with one scale.

/// Returns the float16 at the start of a block.
///
/// The `half` crate asks for the processor's own conversion at each call, which costs more than the arithmetic here.
#[inline(always)]
pub(super) fn half(block: &[u8]) -> f32 {
    /// Difference of the exponents' offsets, at the place of a float32's exponent.
    const OFFSET: u32 = (127 - 15) << 23;
    /// Smallest subnormal float16, 2⁻²⁴.
    const SMALLEST: f32 = 1.0 / (1 << 24) as f32;
    let bits = block.first_chunk().map_or(0, |bytes| u32::from(u16::from_le_bytes(*bytes)));
    let (exponent, fraction, wide) = (bits & 0x7c00, bits & 0x03ff, (bits & 0x7fff) << 13);
    let magnitude = match exponent {
        // Not by a subnormal float32, which processors compute slowly.
        0 => (fraction as f32 * SMALLEST).to_bits(),
        0x7c00 => wide | 0x7f80_0000,
        _ => wide + OFFSET,
    };
    f32::from_bits(magnitude | (bits & 0x8000) << 16)
}

/// Converts one float16.
#[inline(always)]
pub(super) fn f16(block: &[u8], to: &mut [f32]) {
    to[0] = half(block);
}

/// v = d·(q − 8)
#[inline(always)]
pub(super) fn q4_0(block: &[u8], to: &mut [f32]) {
    let (d, quants) = (half(block), &block[2..]);
    let (low, high) = to.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
        *low = f32::from((q & 15) as i8 - 8) * d;
        *high = f32::from((q >> 4) as i8 - 8) * d;
    }
}

/// v = d·q + m
#[inline(always)]
pub(super) fn q4_1(block: &[u8], to: &mut [f32]) {
    let (d, m, quants) = (half(block), half(&block[2..]), &block[4..]);
    let (low, high) = to.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
        *low = f32::from(q & 15) * d + m;
        *high = f32::from(q >> 4) * d + m;
    }
}

/// Returns the fifth bits of 32 values.
#[inline(always)]
fn fifth_bits(block: &[u8]) -> u32 {
    block.first_chunk().map_or(0, |bits| u32::from_le_bytes(*bits))
}

/// Returns the quants number j and j + 16, five bits each.
#[inline(always)]
fn five_bits(bits: u32, q: u8, j: usize) -> [u8; 2] {
    [q & 15 | (bits >> j << 4) as u8 & 16, q >> 4 | (bits >> (j + 16) << 4) as u8 & 16]
}

/// v = d·(q − 16)
#[inline(always)]
pub(super) fn q5_0(block: &[u8], to: &mut [f32]) {
    let (d, bits, quants) = (half(block), fifth_bits(&block[2..]), &block[6..]);
    let (low, high) = to.split_at_mut(16);
    for (j, ((low, high), q)) in low.iter_mut().zip(high).zip(quants).enumerate() {
        [*low, *high] = five_bits(bits, *q, j).map(|q| f32::from(q as i8 - 16) * d);
    }
}

/// v = d·q + m
#[inline(always)]
pub(super) fn q5_1(block: &[u8], to: &mut [f32]) {
    let (d, m, bits, quants) = (half(block), half(&block[2..]), fifth_bits(&block[4..]), &block[8..]);
    let (low, high) = to.split_at_mut(16);
    for (j, ((low, high), q)) in low.iter_mut().zip(high).zip(quants).enumerate() {
        [*low, *high] = five_bits(bits, *q, j).map(|q| f32::from(q) * d + m);
    }
}

/// v = d·q
#[inline(always)]
pub(super) fn q8_0(block: &[u8], to: &mut [f32]) {
    let (d, quants) = (half(block), &block[2..]);
    for (v, q) in to.iter_mut().zip(quants) {
        *v = f32::from(*q as i8) * d;
    }
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn every_float16_is_converted_exactly() {
        for bits in 0..=u16::MAX {
            let (got, want) = (half(&bits.to_le_bytes()), ::half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:#x}: {got}");
        }
    }
}
