//! Symmetric rounding in blocks: v' = k·t with t = max|v| / K, k an integer in −K…K.

/// Bits of a number.
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
    /// 8 or 4.
    pub fn count(self) -> u32 {
        match self {
            Bits::Eight => 8,
            Bits::Four => 4,
        }
    }

    /// The largest integer, K.
    fn most(self) -> f32 {
        ((1 << (self.count() - 1)) - 1) as f32
    }
}

/// The numbers, rounded in blocks.
pub fn round(numbers: &[f32], bits: Bits, block: usize) -> Vec<f32> {
    let most = bits.most();
    let rounded = numbers.chunks(block).flat_map(|chunk| {
        let step = chunk.iter().fold(0.0f32, |top, v| top.max(v.abs())) / most;
        // A block of zeros, or one so small that its step is 0, becomes zeros.
        chunk.iter().map(move |v| if step > 0.0 { (v / step).round().clamp(-most, most) * step } else { 0.0 })
    });
    rounded.collect()
}

/// Bytes of `len` numbers and their blocks' scales.
pub fn bytes(len: usize, bits: Bits, block: usize) -> usize {
    (len * bits.count() as usize).div_ceil(8) + 4 * len.div_ceil(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_within_half_a_step() {
        let numbers: Vec<f32> = (0..200).map(|i| ((i * 73 + 11) % 101) as f32 / 7.0 - 6.0).collect();
        for (bits, most) in [(Bits::Eight, 127.0), (Bits::Four, 7.0)] {
            let rounded = round(&numbers, bits, 48);
            for (chunk, rounded) in numbers.chunks(48).zip(rounded.chunks(48)) {
                let step = chunk.iter().fold(0.0f32, |top, v| top.max(v.abs())) / most;
                assert!(chunk.iter().zip(rounded).all(|(v, w)| (v - w).abs() <= 0.5001 * step));
                assert!(chunk.iter().zip(rounded).any(|(v, w)| v != w));
            }
            assert_eq!(round(&rounded, bits, 48), rounded);
        }
        assert_eq!(round(&[0.0, -0.0, 1e-45], Bits::Four, 2), [0.0, 0.0, 0.0]);
    }

    #[test]
    fn bytes_count_numbers_and_scales() {
        assert_eq!(
            (bytes(65, Bits::Four, 64), bytes(64, Bits::Eight, 64), bytes(0, Bits::Four, 64)),
            (41, 68, 0)
        );
    }
}
