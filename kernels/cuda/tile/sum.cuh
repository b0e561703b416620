// Sums of parts that an earlier kernel has left in global memory, always in a fixed order.
#pragma once
#include "device.cuh"

/// Element `at` of a sum of `splits` parts that lie `length` apart: in the order of the parts, sixteen loads at a time.
KRON_DEVICE float load_sum(const float *parts, int splits, int64_t length, int64_t at) {
  constexpr int LOADS = 16;
  float sum = 0;
  int s = 0;
  for (; s + LOADS <= splits; s += LOADS) {
    float part[LOADS];
    KRON_UNROLL
    for (int i = 0; i < LOADS; ++i) part[i] = parts[(s + i) * length + at];
    KRON_UNROLL
    for (int i = 0; i < LOADS; ++i) sum += part[i];
  }
  for (; s < splits; ++s) sum += parts[s * length + at];
  return sum;
}

/// One of the `count` lanes that share a sum: it adds the parts index, index + count, ….
struct Lane {
  int index = 0, count = 1;
};

/// A lane's partial sum of element `at`.
KRON_DEVICE float load_sum(const float *parts, int splits, int64_t length, int64_t at, Lane lane) {
  if (lane.count > 1) {
    parts += lane.index * length;
    splits = (splits - lane.index + lane.count - 1) / lane.count;
    length *= lane.count;
  }
  return load_sum(parts, splits, length, at);
}

/// put(e, Σ over the lanes of sum(e, lane)) for e < count, by the whole block.
///
/// Neighbouring threads have neighbouring elements.  If there are more threads than elements and `scratch`
/// has one float for each thread, several lanes share an element: each adds up its parts, those of a warp
/// are added pairwise, and the warps' sums in order after a barrier.  Without scratch an element has one lane.
/// The caller puts another barrier before the next use of `scratch`.
template <class Int, class Sum, class Put> KRON_DEVICE void block_sum(float *scratch, Int count, Sum sum, Put put) {
  const int threads = int(blockDim.x), thread = int(threadIdx.x);
  int width = threads; // elements side by side: the least power of two that holds all
  if (scratch && 2 * count <= threads)
    for (width = 1; width < count;) width *= 2;
  Lane lane;
  lane.index = thread / width, lane.count = threads / width;
  float value = 0;
  for (Int e = thread % width; e < count && lane.index < lane.count; e += threads) {
    value = sum(e, lane);
    if (lane.count == 1) put(e, value);
  }
  if (lane.count == 1) return;
  for (int mask = 16; mask >= width; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
  const int step = width < 32 ? 32 : width;
  if (thread % step < width) scratch[thread / step * width + thread % width] = value;
  __syncthreads(); // every warp's sums have been written
  if (thread >= count) return;
  value = 0;
  for (int at = thread; at < threads / step * width; at += width) value += scratch[at];
  put(Int(thread), value);
}

/// Four neighbouring elements of a sum of parts, in the order of the parts, four loads at a time; zeros if not `valid`.
KRON_DEVICE Float4 load_sum4(const float *parts, int splits, int64_t length, bool valid) {
  constexpr int LOADS = 4;
  Float4 sum = {};
  if (!valid) return sum;
  KRON_ROLLED
  for (int s = 0; s < splits; s += LOADS, parts += LOADS * length) {
    Float4 part[LOADS];
    KRON_UNROLL
    for (int i = 0; i < LOADS; ++i) {
      part[i] = {};
      if (s + i < splits) part[i] = *reinterpret_cast<const Float4 *>(parts + i * length);
    }
    KRON_UNROLL
    for (int i = 0; i < LOADS; ++i) sum.x += part[i].x, sum.y += part[i].y, sum.z += part[i].z, sum.w += part[i].w;
  }
  return sum;
}
