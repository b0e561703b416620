// Host half of ptx/round.cuh.
#pragma once
#include <cmath>
#include <cstring>

#include "elements.h"

inline float to_float(float v) { return v; }
inline float to_float(bf16 v) {
  const uint32_t bits = uint32_t(v.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline float to_float(f16 v) {
  float f;
  const int exponent = v.bits >> 10 & 31, mantissa = v.bits & 1023;
  if (exponent == 31) f = mantissa ? NAN : INFINITY;
  else if (exponent == 0) f = std::ldexp(float(mantissa), -24);
  else f = std::ldexp(float(mantissa + 1024), exponent - 25);
  return v.bits & 0x8000 ? -f : f;
}

template <class E> inline E from_float(float v);
template <> inline float from_float<float>(float v) { return v; }
template <> inline bf16 from_float<bf16>(float v) {
  if (v != v) return bf16{0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bf16{uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <> inline f16 from_float<f16>(float v) {
  if (v != v) return f16{0x7fff};
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const double a = std::fabs(double(v));
  if (a >= 65520.0) return f16{uint16_t(sign | 0x7c00)};
  if (a == 0) return f16{sign};
  int exponent = 0;
  std::frexp(a, &exponent);
  // The grid's step: 2^(e−11) for normals, 2^-24 below them; nearbyint ties to even.
  const int step = (exponent < -13 ? -13 : exponent) - 11;
  const uint32_t units = uint32_t(std::nearbyint(std::ldexp(a, -step)));
  return f16{uint16_t(sign | (units + (uint32_t(step + 24) << 10)))};
}

template <class E> inline uint32_t pack(float low, float high) {
  return from_float<E>(low).bits | uint32_t(from_float<E>(high).bits) << 16;
}
