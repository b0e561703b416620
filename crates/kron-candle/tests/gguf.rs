//! GGUF blocks are dequantised to candle's own values, bit for bit.

use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use candle_core::{DType, Device};
use kron_adapter::gguf::{BlockType, Blocks};
use kron_tests::gguf::random_block;

/// Candle's name of a kind.
fn of_candle(kind: BlockType) -> GgmlDType {
    match kind {
        BlockType::F32 => GgmlDType::F32,
        BlockType::F16 => GgmlDType::F16,
        BlockType::Bf16 => GgmlDType::BF16,
        BlockType::Q4_0 => GgmlDType::Q4_0,
        BlockType::Q4_1 => GgmlDType::Q4_1,
        BlockType::Q5_0 => GgmlDType::Q5_0,
        BlockType::Q5_1 => GgmlDType::Q5_1,
        BlockType::Q8_0 => GgmlDType::Q8_0,
        BlockType::Q2K => GgmlDType::Q2K,
        BlockType::Q3K => GgmlDType::Q3K,
        BlockType::Q4K => GgmlDType::Q4K,
        BlockType::Q5K => GgmlDType::Q5K,
        BlockType::Q6K => GgmlDType::Q6K,
    }
}

#[test]
fn every_kind_of_block_has_candle_s_values() {
    let mut rng = kron_tests::gguf::seeded(7);
    for kind in BlockType::ALL {
        let (rows, columns) = (64, 4 * kind.values());
        let bytes: Vec<u8> = (0..4 * rows).flat_map(|_| random_block(kind, &mut rng)).collect();
        let theirs = qtensor_from_ggml(of_candle(kind), &bytes, vec![rows, columns], &Device::Cpu).unwrap();
        let theirs = theirs.dequantize(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
        let mut ours = vec![0.0; rows * columns];
        Blocks::new(kind, rows, columns, bytes).unwrap().dequantise(0..rows, &mut ours).unwrap();
        let differ = ours.iter().zip(&theirs).filter(|(a, b)| a.to_bits() != b.to_bits() && **a + **b != 0.0);
        assert_eq!(differ.count(), 0, "{}", kind.name());
    }
}
