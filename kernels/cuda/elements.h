// Element types of the kernels, for the device and for its emulation.
#pragma once
#include <stdint.h>

struct bf16 {
  static constexpr bool BF16 = true;
  uint16_t bits;
};
struct f16 {
  static constexpr bool BF16 = false;
  uint16_t bits;
};
using f32 = float;

/// Two and four float32 of global or shared memory.
struct alignas(8) Float2 {
  float x, y;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};

/// 16 bytes of global or shared memory.
struct alignas(16) Vec4 {
  uint32_t x, y, z, w;
};
