// Host half of ptx/matrix.cuh, which documents the layout of the fragments.
#pragma once
#include <cstring>

#include "emulate/kernel.h"
#include "emulate/round.h"

/// A lane's argument of ldmatrix.
struct EmuLdmatrix {
  uint16_t row[8] = {}; // read by the lane itself, so that a race is seen where it happens
  uint32_t chunk = 0;   // 16-byte chunk of shared memory: banks repeat every 8
  uint32_t out[4] = {};
};
template <int N, bool TRANS> KRON_COMBINE void emu_ldmatrix(void *const *lanes) {
  uint64_t conflicts = 0;
  for (int matrix = 0; matrix < N; ++matrix) {
    EmuLdmatrix *rows[8];
    for (int i = 0; i < 8; ++i) rows[i] = static_cast<EmuLdmatrix *>(lanes[matrix * 8 + i]);
    int worst = 1;
    for (int i = 0; i < 8; ++i) {
      int same = 1; // different chunks in the same four banks
      for (int k = 0; k < i; ++k) {
        bool seen = false;
        for (int l = 0; l < k; ++l) seen |= rows[l]->chunk == rows[k]->chunk;
        same += !seen && rows[k]->chunk != rows[i]->chunk && rows[k]->chunk % 8 == rows[i]->chunk % 8;
      }
      worst = same > worst ? same : worst;
    }
    conflicts += uint64_t(worst - 1);
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, h = lane % 4 * 2;
      auto *to = static_cast<EmuLdmatrix *>(lanes[lane]);
      const uint32_t low = TRANS ? rows[h]->row[g] : rows[g]->row[h];
      const uint32_t high = TRANS ? rows[h + 1]->row[g] : rows[g]->row[h + 1];
      to->out[matrix] = low | high << 16;
    }
  }
  emu::count_bank_conflicts(conflicts);
}

template <int N, bool TRANS> inline void ldmatrix(uint32_t *out, const void *row KRON_SITE_ARG) {
  EmuLdmatrix e;
  if (reinterpret_cast<uintptr_t>(row) % 16) emu::fail("ldmatrix row at an address that is not a multiple of 16");
  if (int(threadIdx.x % 32) < 8 * N) std::memcpy(e.row, row, 16); // the other lanes' addresses are ignored
  e.chunk = uint32_t(reinterpret_cast<uintptr_t>(row) / 16);
  emu::warp_meet(0xffffffffu, "ldmatrix", site, &e, emu_ldmatrix<N, TRANS>);
  for (int i = 0; i < N; ++i) out[i] = e.out[i];
}

/// A lane's argument of mma.
struct EmuMma {
  const uint32_t *a = nullptr, *b = nullptr;
  float *d = nullptr;
};
template <class E, int K> KRON_COMBINE void emu_mma(void *const *lanes) {
  const auto low = [](uint32_t v) { return to_float(E{uint16_t(v)}); };
  const auto high = [](uint32_t v) { return to_float(E{uint16_t(v >> 16)}); };
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto *m = static_cast<const EmuMma *>(lanes[lane]);
    const int g = lane / 4, h = lane % 4 * 2;
    for (int i = 0; i < K / 4; ++i) {
      const int row = g + i % 2 * 8, k = h + i / 2 * 8;
      a[row][k] = low(m->a[i]);
      a[row][k + 1] = high(m->a[i]);
    }
    for (int i = 0; i < K / 8; ++i) {
      b[h + i * 8][g] = low(m->b[i]);
      b[h + i * 8 + 1][g] = high(m->b[i]);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto *m = static_cast<const EmuMma *>(lanes[lane]);
    const int g = lane / 4, h = lane % 4 * 2;
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < K; ++k) m->d[i] += a[g + i / 2 * 8][k] * b[k][h + i % 2];
  }
}

template <class E, int K> inline void mma(float *d, const uint32_t *a, const uint32_t *b KRON_SITE_ARG) {
  EmuMma m;
  m.a = a;
  m.b = b;
  m.d = d;
  emu::warp_meet(0xffffffffu, "mma", site, &m, emu_mma<E, K>);
}
