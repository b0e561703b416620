/* KronParams: what host and device share, and the only argument of every kernel.
 * Plain C: bindgen writes its Rust twin (src/params.rs).
 *
 *   T = X·Cᵀ   U = A·T   Y (+)= s·U·Bᵀ
 *
 * Every pointer is a device pointer.  A kernel reads only the fields that it names. */
#ifndef KRON_PARAMS_H
#define KRON_PARAMS_H

#include <stdint.h>

/* Most terms of a joined group, one of which may be the padding of the rank. */
#define KRON_STACKED 8

/* One adapter of a joined group; the padding has no C and no parts, and stands for zeros. */
typedef struct KronStacked {
  const float *c;        /* C, rank × c_in */
  float *t;              /* T, rows × a_in × rank: `split` writes it */
  const float *dt_parts; /* dt_splits × rows × a_in × rank: `join` adds them up */
  int32_t first, rank;   /* its ranks in the stack */
  int32_t dt_splits;
} KronStacked;

typedef struct KronParams {
  /* θ, float32, row-major. */
  const float *a; /* a_out × a_in; null: A = [1] (LoRA) */
  const float *b; /* b_out × rank; null: B is the identity (full inner factor) */
  const float *c; /* rank × c_in */

  /* Activations: elements of the kernel's dtype; strides are in elements. */
  const void *x;  /* rows × d_in */
  const void *dy; /* rows × d_out */
  void *y;        /* rows × d_out */
  void *dx;       /* rows × d_in */
  void *w;        /* w_rows × d_in, rows first_row… of the layer's weight */
  int64_t x_stride, dy_stride, y_stride, dx_stride, w_stride;

  /* Float32 buffers.  A "part" is one term of a sum whose order the plan fixes. */
  float *t;        /* T, rows × a_in × rank */
  float *t_parts;  /* t_splits × rows × a_in × rank */
  float *v;        /* V = dY·B, rows × a_out × rank */
  float *dt_parts; /* dt_splits × rows × a_in × rank: s·κ·Aᵀ·V */
  float *da_parts; /* da_splits × a_out × a_in */
  float *db_parts; /* db_splits × b_out × rank */
  float *dc_parts; /* dc_splits × rank × c_in; with dc_splits = 0 `dx` adds to `grad` directly */
  float *grad;     /* [dA | dB | dC], added to */

  /* The problem. */
  int64_t rows;      /* n, tokens */
  int64_t first_row; /* merge: row of the weight at which w starts */
  int64_t w_rows;    /* merge: rows of w */
  int32_t a_out, a_in, b_out, c_in, rank;
  int32_t accumulate; /* 0: y, dx, w are overwritten and never read; 1: added to, with one rounding */

  /* s, and dropout: an element whose 16 random bits are below `threshold` is
   * dropped, the others are multiplied by κ = 1 / (1 − p). */
  float scale, keep_scale;
  uint64_t seed, offset;
  const uint64_t *key; /* two numbers, added to seed and offset modulo 2⁶⁴; null: nothing is added */
  uint32_t threshold;

  /* The plan's tiles and splits. */
  int32_t t_splits;       /* slices of c_in in `down` */
  int32_t t_slice;        /* columns of one slice; see t_longer */
  int32_t dt_splits;      /* parts of dT */
  int32_t da_splits, db_splits, dc_splits;
  int32_t col_tiles;      /* column tiles: the fastest index of the linear grid */
  int32_t cols;           /* columns of a tile in `up`, and on tensor cores in `dy` and `dx` */
  int32_t row_chunks;     /* chunks of tokens in a sum over tokens */
  int32_t tiles;          /* tensor cores, `dy` and `dx`: tiles of rows, which the chunks divide evenly */
  int64_t chunk_rows;     /* tokens of one chunk */
  int32_t a_row_groups;   /* groups of A's rows in the backward pass over dY */
  int32_t rows_per_group; /* rows of A in one group */

  /* Segments: rows of many adapters of one shape.  a, b, c and grad are those of slot 0; slot s lies s·slot_stride
   * elements behind.  Rows are sorted by slot; `u` and `v`, and dt_parts as a single part, are in sorted order. */
  const int32_t *table; /* rows: the slot of each row, -1 for none */
  uint32_t *status;     /* 2: number of rows whose slot is none of the pool's, and the first of them; written */
  const float *scales;  /* slots: s of each slot; null: `scale` for all */
  int32_t *order;       /* rows: numbers of the sorted rows */
  int32_t *segments;    /* 4 × tiles: SegmentTile, tiles of sorted rows */
  float *u;             /* U = A·T, rows × a_out × rank */
  int64_t slot_stride;
  int32_t slots;
  int32_t tile_rows; /* most rows of a tile */

  /* A joined group: adapters of one a_in on one X.  In `stack`, `down`, `split`, `join`, `dc` and `dx` the fields c, t,
   * t_parts, dt_parts, dc_parts and rank are those of all of them, the C's one below the other. */
  int64_t dc_stride; /* elements between dC's parts, in every call: those of a group's term lie among the stack's */
  float *stack;      /* C of all: `stack` writes it */
  KronStacked stacked[KRON_STACKED];

  int32_t t_longer; /* slices of c_in, the first ones, that have 64 columns more */
} KronParams;

#endif
