// Tiles of whole tokens of X or dX: the rows m = (token, j) of 64 / a_in tokens, where a_in ≤ 64.
// A thread's rows have the same token and j in every tile, counted from the tile's first row, so
// their addresses advance by one amount: no division in a main loop.
#pragma once
#include "device.cuh"

struct RowTiles {
  static constexpr int ROWS = 64;
  int tokens;  // of a whole tile
  int inverse; // ⌈2¹⁶ / a_in⌉
  int last;    // rows of the last tile

  KRON_DEVICE explicit RowTiles(const KronParams &p) : tokens(ROWS / p.a_in), inverse((0xffff + p.a_in) / p.a_in) {
    last = int(p.rows - first(p.tiles - 1)) * p.a_in;
  }

  /// The token of row 0 … 63, counted from its tile's first.
  KRON_DEVICE int token(int row) const { return row * inverse >> 16; }
  /// The column of X at which row 0 … 63 of a tile starts.
  KRON_DEVICE int col(const KronParams &p, int row) const { return (row - token(row) * p.a_in) * p.c_in; }
  /// The first token of a tile.
  KRON_DEVICE int64_t first(int tile) const { return int64_t(tile) * tokens; }
  /// The rows of a tile: less than 64 where a_in is no power of two, and at the end.
  KRON_DEVICE int rows(const KronParams &p, int tile) const { return tile == p.tiles - 1 ? last : tokens * p.a_in; }
};
