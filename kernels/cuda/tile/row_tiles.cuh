// Tiles of at most 64 rows m = (token, j) of X or dX, so that the addresses of a thread's
// rows advance from tile to tile by one amount: no division in a main loop.
//
//   a_in ≤ 64   a tile has 64 / a_in whole tokens
//   a_in > 64   a tile has up to 64 rows j of one token
#pragma once
#include "device.cuh"

struct RowTiles {
  static constexpr int ROWS = 64;
  int tokens, width; // of a whole tile: tokens, and rows j of each
  int token_tiles;   // tiles of one token
  int inverse;       // ⌈2¹⁶ / width⌉

  KRON_DEVICE explicit RowTiles(const KronParams &p)
      : tokens(p.a_in < ROWS ? ROWS / p.a_in : 1), width(p.a_in < ROWS ? p.a_in : ROWS),
        token_tiles((p.a_in + ROWS - 1) / ROWS), inverse((0xffff + width) / width) {}

  /// The token and j of row 0 … 63 of a tile, counted from the tile's first.
  KRON_DEVICE int token(int row) const { return row * inverse >> 16; }
  KRON_DEVICE int j(int row) const { return row - token(row) * width; }
  /// Element offset of a row from its tile's first.
  KRON_DEVICE int64_t offset(const KronParams &p, int row, int64_t stride) const {
    return token(row) * stride + int64_t(j(row)) * p.c_in;
  }
};

/// A tile of rows, and the way to the next.
struct RowTile {
  int64_t token; // of the tile's first row
  int j;

  KRON_DEVICE RowTile(const RowTiles &tiles, int index)
      : token(int64_t(index) * tiles.tokens), j(0) {
    if (tiles.token_tiles > 1) token = index / tiles.token_tiles, j = index % tiles.token_tiles * RowTiles::ROWS;
  }
  /// The tile's first row m.
  KRON_DEVICE int64_t m(const KronParams &p) const { return token * p.a_in + j; }
  /// The tile's rows.
  KRON_DEVICE int rows(const KronParams &p, const RowTiles &tiles) const {
    if (tiles.token_tiles > 1) return p.a_in - j < RowTiles::ROWS ? p.a_in - j : RowTiles::ROWS;
    return (p.rows - token < tiles.tokens ? int(p.rows - token) : tiles.tokens) * tiles.width;
  }
  /// Goes on to the next tile; returns the distance to it in elements.
  KRON_DEVICE int64_t next(const KronParams &p, const RowTiles &tiles, int64_t stride) {
    if (tiles.token_tiles == 1) {
      token += tiles.tokens;
      return tiles.tokens * stride;
    }
    if (j + RowTiles::ROWS < p.a_in) {
      j += RowTiles::ROWS;
      return int64_t(RowTiles::ROWS) * p.c_in;
    }
    const int64_t back = int64_t(j) * p.c_in;
    ++token, j = 0;
    return stride - back;
  }
};
