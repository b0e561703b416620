//! Symmetric rounding in blocks: v' = k·t with t = max|v| / K, k an integer in −K…K.

/// Bits of a rounded value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bits {
    /// K = 127
    #[value(name = "8")]
    Eight,
    /// K = 7
    #[value(name = "4")]
    Four,
}

impl Bits {
    /// Returns 8 or 4.
    pub fn count(self) -> u32 {
        match self {
            Bits::Eight => 8,
            Bits::Four => 4,
        }
    }

    /// Returns the largest integer, K.
    fn max_level(self) -> f32 {
        ((1 << (self.count() - 1)) - 1) as f32
    }
}

/// Rounds values in blocks.
pub fn round(values: &[f32], bits: Bits, block: usize) -> Vec<f32> {
    let max = bits.max_level();
    let rounded = values.chunks(block).flat_map(|chunk| {
        let step = chunk.iter().fold(0.0f32, |top, v| top.max(v.abs())) / max;
        // A block of zeros, or one so small that its step is 0, becomes zeros.
        chunk.iter().map(move |v| if step > 0.0 { (v / step).round().clamp(-max, max) * step } else { 0.0 })
    });
    rounded.collect()
}

/// Returns the bytes of `len` rounded values and their blocks' scales.
pub fn bytes(len: usize, bits: Bits, block: usize) -> usize {
    (len * bits.count() as usize).div_ceil(8) + 4 * len.div_ceil(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_half_a_step() {
        let values: Vec<f32> = (0..200).map(|i| ((i * 73 + 11) % 101) as f32 / 7.0 - 6.0).collect();
        for (bits, max) in [(Bits::Eight, 127.0), (Bits::Four, 7.0)] {
            let rounded = round(&values, bits, 48);
            for (chunk, rounded) in values.chunks(48).zip(rounded.chunks(48)) {
                let step = chunk.iter().fold(0.0f32, |top, v| top.max(v.abs())) / max;
                assert!(chunk.iter().zip(rounded).all(|(v, w)| (v - w).abs() <= 0.5001 * step));
                assert!(chunk.iter().zip(rounded).any(|(v, w)| v != w));
            }
            assert_eq!(round(&rounded, bits, 48), rounded);
        }
        assert_eq!(round(&[0.0, -0.0, 1e-45], Bits::Four, 2), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn bytes_count_values_and_scales() {
        assert_eq!(
            (bytes(65, Bits::Four, 64), bytes(64, Bits::Eight, 64), bytes(0, Bits::Four, 64)),
            (41, 68, 0)
        );
    }
}
