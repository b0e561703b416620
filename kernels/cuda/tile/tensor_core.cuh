// Shared by the tensor-core kernels: 16-bit tiles in shared memory and the two
// products that every pass consists of.
//
//   expand   out[m, n] = Σ_q U[m, q]·B[n, q]       up (U, B) and dX (dT, Cᵀ)
//   outer    sum[n, q] += Σ_m Y[m, n]·U[m, q]      dB (dY, U) and dC (X, dT)
//
// Tiles of activations have rows of whole 16-byte chunks.  Chunk c of row m lies
// at c ^ (m % 8), so that ldmatrix uses each bank once in either direction.
// Tiles of width r have rows padded by 16 bytes for the same purpose.
// float32 operands are rounded to E as they enter a tile or a fragment; every
// sum is float32.
#pragma once
#include "tile/operands.cuh"

/// Rank rounded up to the width of a fragment.
KRON_CONSTEXPR int padded(int r) { return r < 8 ? 8 : r; }
/// Elements from one row of a tile of width r to the next.
KRON_CONSTEXPR int pitch(int r) { return r <= 8 ? 8 : r + 8; }
/// Depth of one mma: 8 for a rank up to 8, else 16.
KRON_CONSTEXPR int depth(int r) { return r <= 8 ? 8 : 16; }

/// Element offset of 16-byte chunk `chunk` of row `row` in a tile of COLS columns.
template <int COLS> KRON_DEVICE int swizzled(int row, int chunk) {
  static_assert(COLS % 64 == 0, "a row spans all banks");
  return row * COLS + ((chunk & ~7) | ((chunk ^ row) & 7)) * 8;
}

/// A block's chunks of a ROWS × COLS tile: each thread has one column of chunks, and PIECES rows STEP apart.
template <int ROWS, int COLS, int THREADS> struct Pieces {
  static constexpr int COUNT = ROWS * COLS / 8 / THREADS, STEP = THREADS / (COLS / 8);
  static_assert(COUNT * THREADS * 8 == ROWS * COLS && STEP % 8 == 0, "every thread has whole pieces in one bank group");
  int row, chunk; // of the first piece
  KRON_DEVICE Pieces() : row(threadIdx.x / (COLS / 8)), chunk(threadIdx.x % (COLS / 8)) {}
  /// Element offset of piece k in the tile: `row` % 8 is the same for all pieces.
  KRON_DEVICE int at(int k) const { return swizzled<COLS>(row, chunk) + k * STEP * COLS; }
};

/// The tiles begin … end − 1 of one of `p.row_chunks` equal chunks: their lengths differ by at most one.
struct TileRange {
  int begin, end;
  KRON_DEVICE TileRange(const KronParams &p, int chunk) {
    const int least = p.tiles / p.row_chunks, longer = p.tiles % p.row_chunks;
    begin = chunk * least + (chunk < longer ? chunk : longer);
    end = begin + least + (chunk < longer ? 1 : 0);
  }
};

/// Zeroes the dropped elements of one chunk in shared memory, by the thread that copied it.
KRON_DEVICE void drop_chunk(const KronParams &p, void *chunk, int64_t token, int64_t col) {
  const uint32_t keep = keep_mask(p, token, col / 8);
  Vec4 v = *static_cast<Vec4 *>(chunk);
  const auto pair = [&](int i) { return (keep >> (2 * i) & 1 ? 0xffffu : 0u) | (keep >> (2 * i + 1) & 1 ? 0xffff0000u : 0u); };
  v.x &= pair(0), v.y &= pair(1), v.z &= pair(2), v.w &= pair(3);
  *static_cast<Vec4 *>(chunk) = v;
}

/// Loads the A fragment of rows m0 … m0 + 15 and columns 8·chunk … 8·chunk + 15 of a swizzled tile.
template <int COLS, class E> KRON_DEVICE void load_a16(uint32_t (&a)[4], const E *tile, int m0, int chunk KRON_SITE_ARG) {
  const int lane = threadIdx.x % 32;
  ldmatrix<4, false>(a, tile + swizzled<COLS>(m0 + lane % 16, chunk + lane / 16) KRON_SITE_PASS);
}

/// Loads the A fragment of the transpose: its rows are the tile's columns
/// 8·chunk … 8·chunk + 15, and the sum runs over the tile's rows m0 … m0 + 15.
template <int COLS, class E>
KRON_DEVICE void load_a16_transposed(uint32_t (&a)[4], const E *tile, int m0, int chunk KRON_SITE_ARG) {
  const int lane = threadIdx.x % 32;
  ldmatrix<4, true>(a, tile + swizzled<COLS>(m0 + lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2) KRON_SITE_PASS);
}

/// Loads two B fragments from a tile of width R, rounded up to 8: rows m0 … (the sum) and columns q0 ….
/// They lie side by side along q, or if the tile has only 8 columns along m.
template <int R, class E> KRON_DEVICE void load_b16_pair(uint32_t (&b)[2][2], const E *tile, int m0, int q0 KRON_SITE_ARG) {
  const int lane = threadIdx.x % 32, row = R > 8 ? lane % 16 : lane, col = R > 8 ? lane / 16 * 8 : 0;
  ldmatrix<4, true>(b[0], tile + (m0 + row) * pitch(R) + q0 + col KRON_SITE_PASS);
}

/// Adds A·B over the 16·STEPS rows of a tile B of width R for N fragments from column q0: sum[t] is the D fragment
/// of the rows of A × q0 + 8t …; load_a(a, k) loads the A fragment of the rows 16·k … 16·k + 15 of B.
template <class E, int R, int STEPS, int N, class A>
KRON_DEVICE void multiply(float (&sum)[N][4], const E *tile, int q0, A load_a KRON_SITE_ARG) {
  constexpr int K = R > 8 ? 1 : 2, T = 2 / K; // fragments of a pair along the sum, and along q
  static_assert(STEPS % K == 0 && N % T == 0, "whole pairs");
  KRON_UNROLL
  for (int k = 0; k < STEPS; k += K) {
    uint32_t a[K][4];
    KRON_UNROLL
    for (int i = 0; i < K; ++i) load_a(a[i], k + i);
    KRON_UNROLL
    for (int t = 0; t < N; t += T) {
      uint32_t b[2][2];
      load_b16_pair<R>(b, tile, 16 * k, q0 + 8 * t KRON_SITE_PASS);
      KRON_UNROLL
      for (int i = 0; i < 2; ++i) mma<E, 16>(sum[t + (K == 1 ? i : 0)], a[K == 1 ? 0 : i], b[i] KRON_SITE_PASS);
    }
  }
}

/// outer: adds Yᵀ·U over ROWS rows for 16 columns of Y from `chunk`, all q.
/// sum[t] is the D fragment of columns (rows of D) × q = 8t … 8t + 7.
template <class E, int R, int ROWS, int COLS>
KRON_DEVICE void outer(float (&sum)[padded(R) / 8][4], const E *y, int chunk, const E *u KRON_SITE_ARG) {
  multiply<E, padded(R), ROWS / 16>(
      sum, u, 0, [&](uint32_t (&a)[4], int k) { load_a16_transposed<COLS>(a, y, 16 * k, chunk KRON_SITE_PASS); } KRON_SITE_PASS);
}

/// The B fragments of 32 columns for `expand`.  Column c of fragment t is column
/// 8·(c / 2) + 2·t + c % 2 of the 32, so that a thread gets 8 consecutive
/// columns, 16 bytes of an output row.
template <class E, int R> struct Expand {
  static constexpr int K = depth(R), STEPS = padded(R) / K;
  uint32_t b[4][STEPS][K / 8];

  /// Loads the fragments; f(n, q) returns the operand's element for column n of 32 and is never called for q ≥ R.
  template <class F> KRON_DEVICE void load(F f) {
    const int lane = threadIdx.x % 32, g = lane / 4, h = lane % 4 * 2;
    KRON_UNROLL
    for (int t = 0; t < 4; ++t) {
      const int n = 8 * (g / 2) + 2 * t + g % 2;
      KRON_UNROLL
      for (int s = 0; s < STEPS; ++s) {
        KRON_UNROLL
        for (int i = 0; i < K / 8; ++i) {
          const int q = K * s + 8 * i + h;
          b[t][s][i] = pack<E>(q < R ? f(n, q) : 0.0f, q < R ? f(n, q + 1) : 0.0f);
        }
      }
    }
  }

  /// out[half][0 … 7] = row m0 + half·8 + lane / 4, columns 8·(lane % 4) … of the 32.
  KRON_DEVICE void rows(float (&out)[2][8], const E *u, int m0 KRON_SITE_ARG) const {
    const int lane = threadIdx.x % 32;
    float d[4][4] = {};
    KRON_UNROLL
    for (int s = 0; s < STEPS; ++s) {
      uint32_t a[K / 4];
      const E *row = u + (m0 + lane % 16) * pitch(padded(R)) + K * s;
      if constexpr (K == 16) ldmatrix<4, false>(a, row + lane / 16 * 8 KRON_SITE_PASS);
      else ldmatrix<2, false>(a, row KRON_SITE_PASS);
      KRON_UNROLL
      for (int t = 0; t < 4; ++t) mma<E, K>(d[t], a, b[t][s] KRON_SITE_PASS);
    }
    KRON_UNROLL
    for (int t = 0; t < 4; ++t) {
      out[0][2 * t] = d[t][0], out[0][2 * t + 1] = d[t][1];
      out[1][2 * t] = d[t][2], out[1][2 * t + 1] = d[t][3];
    }
  }
};

/// Stores 8 elements, 16 bytes of an output row: old plus v, or v, with one rounding.
template <class E> KRON_DEVICE void put8(E *at, const Vec4 &old, const float (&v)[8], bool add) {
  const uint32_t was[4] = {old.x, old.y, old.z, old.w};
  uint32_t now[4];
  KRON_UNROLL
  for (int i = 0; i < 4; ++i) {
    const float low = add ? unpack_low<E>(was[i]) + v[2 * i] : v[2 * i];
    const float high = add ? unpack_high<E>(was[i]) + v[2 * i + 1] : v[2 * i + 1];
    now[i] = pack<E>(low, high);
  }
  *reinterpret_cast<Vec4 *>(at) = {now[0], now[1], now[2], now[3]};
}

/// Expands KRON_RANK(E, R) for every dtype and rank with a tensor-core kernel, and for the low ranks alone.
#define KRON_TENSOR_CORE_LOW(KRON_RANK)                                                                                \
  KRON_RANK(f16, 4) KRON_RANK(f16, 8) KRON_RANK(f16, 16) KRON_RANK(f16, 32)                                            \
  KRON_RANK(bf16, 4) KRON_RANK(bf16, 8) KRON_RANK(bf16, 16) KRON_RANK(bf16, 32)
#define KRON_TENSOR_CORE(KRON_RANK)                                                                                    \
  KRON_TENSOR_CORE_LOW(KRON_RANK)                                                                                      \
  KRON_RANK(f16, 64) KRON_RANK(f16, 128) KRON_RANK(bf16, 64) KRON_RANK(bf16, 128)
