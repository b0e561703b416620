// One micro kernel for each primitive of ptx/, one warp each: input bits in x, output
// bits in y.  A GPU records the golden file with which tests/primitives.rs compares
// the emulator.
#include "device.cuh"

/// Returns this lane's words of x, [lane][words].
KRON_DEVICE const uint32_t *lane_in(const KronParams &p, int words) {
  return static_cast<const uint32_t *>(p.x) + int(threadIdx.x) * words;
}
KRON_DEVICE uint32_t *lane_out(const KronParams &p, int words) {
  return static_cast<uint32_t *>(p.y) + int(threadIdx.x) * words;
}
KRON_DEVICE float as_float(uint32_t bits) {
  union {
    uint32_t bits;
    float value;
  } u = {bits};
  return u.value;
}
KRON_DEVICE uint32_t as_bits(float value) {
  union {
    float value;
    uint32_t bits;
  } u = {value};
  return u.bits;
}

/// 4 words of A, 2 of B, 4 of C in; 4 of D out.
template <class E, int K> KRON_DEVICE void primitive_mma(const KronParams &p) {
  const uint32_t *in = lane_in(p, 10);
  const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b[2] = {in[4], in[5]};
  float d[4] = {as_float(in[6]), as_float(in[7]), as_float(in[8]), as_float(in[9])};
  mma<E, K>(d, a, b);
  for (int i = 0; i < 4; ++i) lane_out(p, 4)[i] = as_bits(d[i]);
}
KRON_KERNEL(primitive_mma_bf16_k16, 32) { primitive_mma<bf16, 16>(p); }
KRON_KERNEL(primitive_mma_bf16_k8, 32) { primitive_mma<bf16, 8>(p); }
KRON_KERNEL(primitive_mma_f16_k16, 32) { primitive_mma<f16, 16>(p); }
KRON_KERNEL(primitive_mma_f16_k8, 32) { primitive_mma<f16, 8>(p); }

/// 4 words in: a 32 × 8 tile of 16-bit elements, through cp.async; N words out.
template <int N, bool TRANS> KRON_DEVICE void primitive_ldmatrix(const KronParams &p) {
  Shared shared;
  bf16 *tile = shared.take<bf16>(32 * 8);
  cp_async16(tile + threadIdx.x * 8, lane_in(p, 4), threadIdx.x != 5); // row 5 arrives as zeros
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t out[N];
  ldmatrix<N, TRANS>(out, tile + threadIdx.x * 8);
  for (int i = 0; i < N; ++i) lane_out(p, N)[i] = out[i];
}
KRON_KERNEL(primitive_ldmatrix_x2, 32) { primitive_ldmatrix<2, false>(p); }
KRON_KERNEL(primitive_ldmatrix_x2_trans, 32) { primitive_ldmatrix<2, true>(p); }
KRON_KERNEL(primitive_ldmatrix_x4, 32) { primitive_ldmatrix<4, false>(p); }
KRON_KERNEL(primitive_ldmatrix_x4_trans, 32) { primitive_ldmatrix<4, true>(p); }

/// 2 words in: two float32 values.  4 words out: packed, rounded one by one, and converted back.
template <class E> KRON_DEVICE void primitive_round(const KronParams &p) {
  const uint32_t *in = lane_in(p, 2);
  const float low = as_float(in[0]), high = as_float(in[1]);
  uint32_t *out = lane_out(p, 4);
  out[0] = pack<E>(low, high);
  out[1] = from_float<E>(low).bits | uint32_t(from_float<E>(high).bits) << 16;
  out[2] = as_bits(unpack_low<E>(in[0]));
  out[3] = as_bits(unpack_high<E>(in[1]));
}
KRON_KERNEL(primitive_round_bf16, 32) { primitive_round<bf16>(p); }
KRON_KERNEL(primitive_round_f16, 32) { primitive_round<f16>(p); }

/// 1 word in, 5 out: xor shuffles by 1, 2, 4, 8, 16.
KRON_KERNEL(primitive_shuffle, 32) {
  for (int i = 0; i < 5; ++i) lane_out(p, 5)[i] = as_bits(__shfl_xor_sync(0xffffffffu, as_float(lane_in(p, 1)[0]), 1 << i));
}

/// 2 words in, 1 out: the upper half of their product.
KRON_KERNEL(primitive_umulhi, 32) { lane_out(p, 1)[0] = __umulhi(lane_in(p, 2)[0], lane_in(p, 2)[1]); }
/// 3 words in, 1 out: a·b + c with one rounding.
KRON_KERNEL(primitive_fma, 32) {
  const uint32_t *in = lane_in(p, 3);
  lane_out(p, 1)[0] = as_bits(__fmaf_rn(as_float(in[0]), as_float(in[1]), as_float(in[2])));
}
/// 1 word in, 3 out: the lanes with an odd word, the bits of the word, and its lowest one's number from 1.
KRON_KERNEL(primitive_ballot, 32) {
  const uint32_t in = lane_in(p, 1)[0];
  uint32_t *out = lane_out(p, 3);
  out[0] = __ballot_sync(0xffffffffu, in & 1), out[1] = uint32_t(__popc(in)), out[2] = uint32_t(__ffs(int(in)));
}
