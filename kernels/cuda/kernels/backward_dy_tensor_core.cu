// Backward over dY on tensor cores: bf16 and f16, ranks 4 … 128.  dY is read once.
//
//   V[n, i, q]    = Σ_b dY[n, (i, b)]·B[b, q]
//   dB[b, q]     += Σ_{n, i} dY[n, (i, b)]·U[n, i, q]       U[n, i, q] = Σ_j A_ij·T[n, j, q]
//   dA[i, j]     += Σ_{n, q} V[n, i, q]·T[n, j, q]
//   dT[n, j, q]   = s·κ·Σ_i A_ij·V[n, i, q]                 κ = 1/(1 − p)
//
// The plain loops are those of backward_simt.cu.  The parts of dB and dA are unscaled; `reduce` applies s.
//
// A block has up to 128 columns b, one group of i and one chunk of the tiles of
// tokens.  It takes the tiles one by one and, for each, the i of its group: one step.
// V, dT and dA are linear in the columns, so every block sums over its own columns;
// the results are parts that the next kernels add in order.
//
// In a step warps 0 … 3 compute V, and from their fragments of it dT and dA, while
// warps 4 … 7 compute U; then every warp adds to dB, of which it has 16 columns and
// every q in registers.  The kernels differ in what they keep where:
//
//   m…, n… (a_in = 1, 2)   dT in registers; T in shared memory, copied like dY
//   r… (any a_in)          dT in shared memory, where each thread has its own elements; T in L1
#include "tile/tensor_core.cuh"

template <class E, int R, int A_IN> struct Dy {
  static constexpr bool NARROW = A_IN > 0;
  // Tiles of T at a time.  Copies are two steps ahead: two tiles if a group has a single row, which n… never has.
  static constexpr int T_TILES = A_IN == 1 ? 3 : 2;
  static constexpr int THREADS = 256, ROWS = R <= 32 ? 64 : 32, COLS = 128, STAGES = 3;
  static constexpr int RP = padded(R), TILES = RP / 8;
  static constexpr int ROLE = 128; // threads that compute V; the others compute U
  // V: a warp has 16 rows and V_TILES fragments along q.
  static constexpr int ROW_TILES = ROWS / 16, V_TILES = TILES * ROW_TILES / 4;
  // dA: LANES sums for each element of A, of the four warps and, if NARROW, of eight groups of their lanes.
  static constexpr int LANES = NARROW ? 32 : 4;
  using Piece = Pieces<ROWS, COLS, THREADS>;

  const KronParams &p;
  const int last;             // tokens of the last tile
  const Piece piece;
  E *ys = nullptr;            // dY: [STAGES][ROWS][COLS], swizzled
  E *us = nullptr;            // U_i: [ROWS][R]
  E *bs = nullptr;            // B: [COLS][R]
  float *ts = nullptr;        // T, if NARROW: [T_TILES][ROWS][a_in][R]
  float *as = nullptr;        // A: [rows_per_group][a_in]
  float *das = nullptr;       // dA: [rows_per_group][a_in][LANES]
  Float4 *dts = nullptr;      // Σ_i A_ij·V_i, unless NARROW: [a_in][V_TILES][ROLE]
  int b0 = 0, b_end = 0;      // columns of this block
  int i0 = 0, count = 0;      // first i and number of i of this block
  // The next step to copy.
  const E *next = nullptr;    // this thread's first chunk
  int next_tile = 0, next_i = 0;

  KRON_DEVICE explicit Dy(const KronParams &params)
      : p(params), last(int(params.rows - int64_t(params.tiles - 1) * ROWS)) {}

  KRON_DEVICE int a_in() const { return NARROW ? A_IN : p.a_in; }
  /// Calls f(j) for the columns j of A.
  template <class F> KRON_DEVICE void each_j(F f) const {
    if constexpr (NARROW) {
      KRON_UNROLL
      for (int j = 0; j < A_IN; ++j) f(j);
    } else {
      KRON_ROLLED
      for (int j = 0; j < p.a_in; ++j) f(j);
    }
  }

  /// The tokens of a tile.
  KRON_DEVICE int tokens(int tile) const { return tile == p.tiles - 1 ? last : ROWS; }

  /// Starts the copies of one step of dY and, with a tile's first, of its T; zeros beyond the edges.
  KRON_DEVICE void start(int stage, const TileRange &range) {
    if (next_tile < range.end) {
      const int rows = tokens(next_tile);
      const bool in_col = b0 + 8 * piece.chunk < b_end;
      const E *from = next;
      KRON_UNROLL
      for (int k = 0; k < Piece::COUNT; ++k) {
        const bool inside = in_col && piece.row + k * Piece::STEP < rows;
        cp_async16(ys + stage * ROWS * COLS + piece.at(k), from, inside);
        from += Piece::STEP * p.dy_stride;
      }
      if (NARROW && next_i == 0) copy_t(rows);
      next += p.b_out;
      if (++next_i == count) {
        next_i = 0, ++next_tile;
        next += ROWS * p.dy_stride - int64_t(count) * p.b_out;
      }
    }
    cp_async_commit();
  }

  /// Starts the copies of T of the next tile, into its place among the T_TILES.
  KRON_DEVICE void copy_t(int rows) const {
    constexpr int ROW = A_IN * R, FOURS = ROWS * ROW / 4;
    const float *from = p.t + int64_t(next_tile) * (ROWS * ROW) + 4 * threadIdx.x;
    float *to = ts + next_tile % T_TILES * (ROWS * ROW) + 4 * threadIdx.x;
    KRON_UNROLL
    for (int e = 0; e < FOURS; e += THREADS) {
      const int at = e + threadIdx.x;
      if (FOURS < THREADS && at >= FOURS) break;
      const bool inside = at < rows * (ROW / 4);
      cp_async16(to + 4 * e, from + 4 * e, inside);
    }
  }

  /// U_i of one tile, rounded to E, by the threads that do not compute V.
  KRON_DEVICE void fill_u(int tile, int i) const {
    constexpr int PAIRS = ROWS * R / 2;
    const int width = a_in() * R, rows = NARROW ? ROWS : tokens(tile);
    const int row0 = (threadIdx.x - ROLE) / (R / 2), q = threadIdx.x % (R / 2) * 2;
    const float *t = (NARROW ? ts + tile % T_TILES * ROWS * width : p.t + int64_t(tile) * ROWS * width) + row0 * width + q;
    const float *a = as + i * a_in();
    E *to = us + row0 * pitch(RP) + q;
    KRON_UNROLL
    for (int k = 0; k < PAIRS / ROLE; ++k) {
      const int row = k * (2 * ROLE / R); // from row0
      const float *at = t + row * width;
      Float2 u = {};
      if (row0 + row < rows) {
        each_j([&](int j) {
          const Float2 v = *reinterpret_cast<const Float2 *>(at + j * R);
          u = {__fmaf_rn(a[j], v.x, u.x), __fmaf_rn(a[j], v.y, u.y)};
        });
      }
      *reinterpret_cast<uint32_t *>(to + row * pitch(RP)) = pack<E>(u.x, u.y);
    }
  }

  /// T of row `row`, block j and columns q, q + 1 for dA; zeros beyond the tile's tokens.
  KRON_DEVICE Float2 t_at(int tile, int rows, int row, int j, int q) const {
    const int at = (row * a_in() + j) * R + q;
    if (NARROW) return *reinterpret_cast<const Float2 *>(ts + tile % T_TILES * ROWS * a_in() * R + at);
    if (row >= rows || q >= R) return {};
    return *reinterpret_cast<const Float2 *>(p.t + int64_t(tile) * ROWS * p.a_in * R + at);
  }

  /// dA_ij's share of a thread: Σ V·T over its elements of V.
  KRON_DEVICE float dot(const float (&v)[V_TILES][4], int tile, int rows, int row, int j, int q) const {
    float sum = 0;
    KRON_UNROLL
    for (int t = 0; t < V_TILES; ++t) {
      if (R < RP && q + 8 * t >= R) continue;
      KRON_UNROLL
      for (int half = 0; half < 2; ++half) {
        const Float2 at = t_at(tile, rows, row + 8 * half, j, q + 8 * t);
        sum = __fmaf_rn(v[t][2 * half + 1], at.y, __fmaf_rn(v[t][2 * half], at.x, sum));
      }
    }
    return sum;
  }

  /// Adds a thread's share of dA_ij; lanes share a sum.
  KRON_DEVICE void add_da(int i, int j, float sum) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    KRON_UNROLL
    for (int mask = 1; mask < 32 / (LANES / 4); mask *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, mask);
    float *at = das + (i * a_in() + j) * LANES + (NARROW ? 8 * warp + lane / 4 : warp);
    if (lane % (NARROW ? 4 : 32) == 0) *at += sum;
  }

  /// Writes two rows of a fragment of dT as this block's part; applies s and κ.
  KRON_DEVICE void put_dt(float *out, int rows, int row, int j, int q, const Float4 &dt) const {
    const float s = p.scale * p.keep_scale;
    float *at = out + (row * a_in() + j) * R + q;
    if (q >= R) return;
    if (row < rows) *reinterpret_cast<Float2 *>(at) = {s * dt.x, s * dt.y};
    if (row + 8 < rows) *reinterpret_cast<Float2 *>(at + 8 * a_in() * R) = {s * dt.z, s * dt.w};
  }

  KRON_DEVICE static void add(Float4 &sum, float a, const float (&v)[4]) {
    sum = {__fmaf_rn(a, v[0], sum.x), __fmaf_rn(a, v[1], sum.y), __fmaf_rn(a, v[2], sum.z), __fmaf_rn(a, v[3], sum.w)};
  }

  KRON_DEVICE void run() {
    const int col = int(blockIdx.x % p.col_tiles), rest = int(blockIdx.x / p.col_tiles);
    const int z = rest % p.row_chunks, group = rest / p.row_chunks;
    const TileRange range(p, z);
    b0 = col * p.cols, b_end = p.b_out - b0 < p.cols ? p.b_out : b0 + p.cols;
    // The groups are equal: their lengths differ by at most one.
    const int least = p.a_out / p.a_row_groups, longer = p.a_out % p.a_row_groups;
    i0 = group * least + (group < longer ? group : longer);
    count = least + (group < longer ? 1 : 0);
    next_tile = range.begin;
    next = static_cast<const E *>(p.dy) + (int64_t(range.begin) * ROWS + piece.row) * p.dy_stride +
           int64_t(i0) * p.b_out + b0 + 8 * piece.chunk;
    Shared shared;
    ys = shared.take<E>(STAGES * ROWS * COLS);
    us = shared.take<E>(ROWS * pitch(RP));
    bs = shared.take<E>(COLS * pitch(RP));
    as = shared.take<float>(p.rows_per_group * p.a_in);
    das = shared.take<float>(p.rows_per_group * p.a_in * LANES);
    if (NARROW) ts = shared.take<float>(T_TILES * ROWS * A_IN * R);
    else dts = shared.take<Float4>(p.a_in * V_TILES * ROLE);
    KRON_UNROLL
    for (int s = 0; s < STAGES - 1; ++s) start(s, range);
    KRON_UNROLL
    for (int k = 0; k < COLS * RP; k += THREADS) {
      const int e = k + threadIdx.x, b = b0 + e / RP, q = e % RP;
      bs[e / RP * pitch(RP) + q] = from_float<E>(b < b_end && q < R ? p.b[b * R + q] : 0.0f);
    }
    KRON_ROLLED
    for (int e = threadIdx.x; e < count * a_in(); e += THREADS) as[e] = p.a ? p.a[i0 * a_in() + e] : 1.0f;
    KRON_ROLLED
    for (int e = threadIdx.x; e < count * a_in() * LANES; e += THREADS) das[e] = 0;
    for (int e = threadIdx.x; R < RP && e < ROWS * RP; e += THREADS) // the columns q ≥ R
      if (e % RP >= R) us[e / RP * pitch(RP) + e % RP] = from_float<E>(0.0f);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, h = lane % 4 * 2;
    const int row0 = warp % ROW_TILES * 16, v0 = warp % 4 / ROW_TILES * V_TILES, q = 8 * v0 + h;
    Float4 narrow_dt[NARROW ? A_IN : 1][V_TILES] = {};
    if (!NARROW && threadIdx.x < ROLE)
      for (int e = threadIdx.x; e < p.a_in * V_TILES * ROLE; e += ROLE) dts[e] = {};
    float db[TILES][4] = {};
    int stage = 0, i = 0, tile = range.begin;
    while (tile < range.end) {
      cp_async_wait<STAGES - 2>();
      __syncthreads(); // this stage has arrived for all threads; U of the last step has been read
      start(stage == 0 ? STAGES - 1 : stage - 1, range);
      if (threadIdx.x < ROLE) {
        const int rows = tokens(tile), part = group * p.col_tiles + col;
        float *out = p.dt_parts + (int64_t(part) * p.rows + int64_t(tile) * ROWS) * a_in() * R;
        float v[V_TILES][4] = {};
        multiply<E, RP, COLS / 16>(v, bs, 8 * v0, [&](uint32_t (&a)[4], int k) {
          load_a16<COLS>(a, ys + stage * ROWS * COLS, row0, 2 * k);
        });
        each_j([&](int j) {
          if (p.a) add_da(i, j, dot(v, tile, rows, row0 + g, j, q));
          KRON_UNROLL
          for (int t = 0; t < V_TILES; ++t) {
            Float4 *at = NARROW ? &narrow_dt[NARROW ? j : 0][t] : dts + (j * V_TILES + t) * ROLE + threadIdx.x, dt = *at;
            add(dt, as[i * a_in() + j], v[t]);
            if (i == count - 1) put_dt(out, rows, row0 + g, j, q + 8 * t, dt), dt = {};
            *at = dt;
          }
        });
      } else {
        fill_u(tile, i);
      }
      __syncthreads(); // U has been written
      outer<E, R, ROWS, COLS>(db, ys + stage * ROWS * COLS, 2 * warp, us);
      if (++i == count) i = 0, ++tile;
      stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    cp_async_wait<0>();
    float *out = p.db_parts + int64_t(z * p.a_row_groups + group) * p.b_out * R;
    KRON_UNROLL
    for (int t = 0; t < TILES; ++t) {
      KRON_UNROLL
      for (int e = 0; e < 4; ++e) {
        const int row = b0 + 16 * warp + g + e / 2 * 8, q = 8 * t + h + e % 2;
        if (row < b_end && q < R) out[int64_t(row) * R + q] = db[t][e];
      }
    }
    if (!p.a) return;
    // Every warp's sum of dA was written before the last barrier.
    KRON_ROLLED
    for (int e = threadIdx.x; e < count * a_in(); e += THREADS)
      p.da_parts[(int64_t(z * p.col_tiles + col) * p.a_out + i0) * a_in() + e] = load_sum(das + e * LANES, LANES, 1, 0);
  }
};

#define KRON_DY(E, R) KRON_KERNEL_RESIDENT(kron_dy_##E##_r##R, 256, R <= 32 ? 2 : 1) { Dy<E, R, 0>(p).run(); }
#define KRON_DY_NARROW(E, R)                                                                                           \
  KRON_KERNEL_RESIDENT(kron_dy_##E##_m##R, 256, 2) { Dy<E, R, 1>(p).run(); }                                           \
  KRON_KERNEL_RESIDENT(kron_dy_##E##_n##R, 256, 2) { Dy<E, R, 2>(p).run(); }
KRON_TENSOR_CORE(KRON_DY)
KRON_TENSOR_CORE_LOW(KRON_DY_NARROW)
