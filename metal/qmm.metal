// y = epilogue((rmsnorm(x) or x) @ rows^T) for 1 to 16 rows of x: see csrc/ops/qmm.cpp for the formula.
//
// A simdgroup computes R rows of one segment for all M rows of x. Of affine rows its lanes share out the columns in
// blocks of 32, the least that ends at a word for every width; of plain rows in blocks of 8. Every sum is a chain of
// explicit fmas in the order of the columns, in a block and then over a lane's blocks, so that a row of y has the same
// bits whatever M and R are, and wherever x is read from.
#include "common.h"
#include "dequant.h"
#include "params.h"

// Rows of x are staged in threadgroup memory, as floats and times the norm: up to four at a time, in tiles of 2048
// columns of one row or 1024 of more. That is 8.5 KB for up to two rows, so that a core with 60 KB for them holds six
// threadgroups, of which some compute while others stage; 17 KB for more.
template <int K, int M>
struct Tiling {
  enum {
    most = M == 1 ? 2048 : 1024,
    columns = K < most ? K : most,
    blocks = (columns + 31) / 32,
    count = (K + columns - 1) / columns,
    rows = M < 4 ? M : 4
  };
};

// A segment's matrix. scales, biases: of affine rows.
struct Segment {
  device const uchar* weights;
  device const uchar* scales;
  device const uchar* biases;
};

inline Segment segment_of(device const uchar* weights, device const uchar* scales, device const uchar* biases) {
  Segment segment;
  segment.weights = weights;
  segment.scales = scales;
  segment.biases = biases;
  return segment;
}

// What a simdgroup works on. `idle`: no rows are left for it, and it only helps to stage. T is x's type.
template <typename T>
struct Work {
  device const T* x;
  device const float* norm;
  threadgroup float4* staged;  // row m, columns 4 j .. 4 j + 3 of a tile's block b of 32: at (8 m + j) blocks + b
  threadgroup float* sums;     // row m, block b: at m blocks + b
  threadgroup float* squares;  // likewise, of x itself
  int rows_of_x;
  int simdgroup;
  int lane;
  bool idle;
};

// Eight values of `from`, of which `count` are there.
template <typename T, bool ALIGNED>
inline void load_some(device const T* from, int count, thread float* to) {
  if (ALIGNED) {
    load8(from, to);
  } else {
    UNROLL
    for (int i = 0; i < 8; i++) {
      to[i] = i < count ? float(from[i]) : 0.0f;
    }
  }
}

// One value of x into its block's sums; it comes out as the dot products take it, times the norm.
template <bool NORM>
inline void take(thread float& v, float scale, thread float& sum, thread float& square) {
  if (NORM) {
    square = fma(v, v, square);
    sum = fma(v, scale, sum);
    v *= scale;
  } else {
    sum += v;
  }
}

// Lanes read 32 columns each that lie 64 bytes apart, and the norm's 128. From device memory that is a cache line a
// lane, and with R = 4 rows of 3 bits more than three times the bytes of the weights, all through the cache; staged, it
// is done once a threadgroup, and lanes then read consecutive 16 bytes. Conversions, sums and the norm are paid once,
// too.
template <typename T, int M, int K, bool NORM, int SIMDGROUPS>
inline void stage(const thread Work<T>& work, int tile, int first_row) {
  typedef Tiling<K, M> Tiles;
  const int tile_blocks = Tiles::blocks;
  const int blocks = min(tile_blocks, K / 32 - tile * tile_blocks);
  for (int i = work.simdgroup * 32 + work.lane; i < blocks * int(Tiles::rows); i += 32 * SIMDGROUPS) {
    const int m = M == 1 ? 0 : i / blocks;
    const int block = i - m * blocks;
    const int column = (tile * tile_blocks + block) * 32;
    device const T* x = work.x + min(first_row + m, work.rows_of_x - 1) * K + column;
    threadgroup float4* to = work.staged + m * 8 * tile_blocks + block;
    float sum = 0.0f;
    float square = 0.0f;
    UNROLL
    for (int j = 0; j < 8; j += 2) {
      float v[8];
      float scale[8] = {};
      load8(x + j * 4, v);
      if (NORM) {
        load8(work.norm + column + j * 4, scale);
      }
      UNROLL
      for (int e = 0; e < 8; e++) {
        take<NORM>(v[e], scale[e], sum, square);
      }
      to[j * tile_blocks] = float4(v[0], v[1], v[2], v[3]);
      to[(j + 1) * tile_blocks] = float4(v[4], v[5], v[6], v[7]);
    }
    work.sums[m * tile_blocks + block] = sum;
    if (NORM) {
      work.squares[m * tile_blocks + block] = square;
    }
  }
}

// Eight columns of M rows of x against those of R rows of weights.
template <typename T, int M, int R, int K, bool NORM, bool ALIGNED>
inline void accumulate8(
    thread float (&partial)[R][M], thread float (&sum)[M], thread float (&square)[M], const thread float (&w)[R][8],
    const thread Work<T>& work, int k) {
  float scale[8] = {};
  if (NORM) {
    load_some<float, ALIGNED>(work.norm + k, K - k, scale);
  }
  UNROLL
  for (int m = 0; m < M; m++) {
    float v[8];
    load_some<T, ALIGNED>(work.x + min(m, work.rows_of_x - 1) * K + k, K - k, v);
    UNROLL
    for (int i = 0; i < 8; i++) {
      take<NORM>(v[i], scale[i], sum[m], square[m]);
      UNROLL
      for (int r = 0; r < R; r++) {
        partial[r][m] = fma(w[r][i], v[i], partial[r][m]);
      }
    }
  }
}

template <typename F>
struct Rows;

// R affine rows against staged rows of x: every 32nd block of 32 columns a lane.
template <typename S, int bits, int group_size>
struct Rows<Affine<S, bits, group_size>> {
  enum { staged = true, present = true };

  // What one block needs of the matrix. All of it is asked for before any is used.
  template <int R>
  struct Held {
    uint words[R][bits];
    float scale[R];
    float bias[R];
  };

  template <int R, int K>
  static void load(thread Held<R>& held, const thread Segment& segment, const thread int (&row)[R], int block) {
    UNROLL
    for (int r = 0; r < R; r++) {
      device const uint* from = (device const uint*)segment.weights;
      load_words<bits>(from + size_t(row[r]) * size_t(K / 32 * bits) + block * bits, held.words[r]);
      const size_t group = size_t(row[r]) * size_t(K / group_size) + size_t(block * 32 / group_size);
      held.scale[r] = float(((device const S*)segment.scales)[group]);
      held.bias[r] = float(((device const S*)segment.biases)[group]);
    }
  }

  // That block against the rows of x from `first_row` on that are staged, of which it is block `of_tile`.
  template <typename T, int M, int R, int K, bool NORM>
  static void dot(
      thread float (&total)[R][M], thread float (&squares)[M], const thread Held<R>& held, const thread Work<T>& work,
      int of_tile, int first_row) {
    typedef Tiling<K, M> Tiles;
    const int rows = Tiles::rows;
    const int tile_blocks = Tiles::blocks;
    float partial[R][rows] = {};
    UNROLL
    for (int j = 0; j < 8; j++) {
      float4 v[rows];
      UNROLL
      for (int m = 0; m < rows; m++) {
        v[m] = work.staged[(m * 8 + j) * tile_blocks + of_tile];
      }
      UNROLL
      for (int i = 0; i < 4; i++) {
        UNROLL
        for (int r = 0; r < R; r++) {
          const float w = unpack<bits>(held.words[r], 4 * j + i);
          UNROLL
          for (int m = 0; m < rows; m++) {
            partial[r][m] = fma(w, v[m][i], partial[r][m]);
          }
        }
      }
    }
    UNROLL
    for (int all = 0; all < M; all++) {  // bounds that do not depend on first_row, so that arrays stay in registers
      const int m = all % rows;
      if (all - m == first_row) {
        const float sum = work.sums[m * tile_blocks + of_tile];
        if (NORM) {
          squares[all] += work.squares[m * tile_blocks + of_tile];
        }
        UNROLL
        for (int r = 0; r < R; r++) {
          total[r][all] = fma(held.scale[r], partial[r][m], fma(held.bias[r], sum, total[r][all]));
        }
      }
    }
  }

  template <typename T, int M, int R, int K, bool NORM>
  static void dot_plain(
      thread float (&)[R][M], thread float (&)[M], const thread Segment&, const thread int (&)[R],
      const thread Work<T>&) {}
};

// R plain rows: every 32nd block of 8 columns a lane, which a simdgroup reads as 512 (half types) consecutive bytes, of
// the weights and of x alike; x is not staged.
template <typename W, bool aligned>
struct Rows<Plain<W, aligned>> {
  enum { staged = false, present = true };

  template <int R>
  struct Held {};

  template <int R, int K>
  static void load(thread Held<R>&, const thread Segment&, const thread int (&)[R], int) {}

  template <typename T, int M, int R, int K, bool NORM>
  static void dot(
      thread float (&)[R][M], thread float (&)[M], const thread Held<R>&, const thread Work<T>&, int, int) {}

  template <typename T, int M, int R, int K, bool NORM>
  static void dot_plain(
      thread float (&total)[R][M], thread float (&squares)[M], const thread Segment& segment,
      const thread int (&row)[R], const thread Work<T>& work) {
    float sum[M] = {};
    for (int k = work.lane * 8; k < K; k += 256) {
      float w[R][8];
      UNROLL
      for (int r = 0; r < R; r++) {
        load_some<W, aligned>((device const W*)segment.weights + size_t(row[r]) * size_t(K) + k, K - k, w[r]);
      }
      accumulate8<T, M, R, K, NORM, aligned>(total, sum, squares, w, work, k);
    }
  }
};

template <>
struct Rows<None> {
  enum { staged = false, present = false };

  template <int R>
  struct Held {};

  template <int R, int K>
  static void load(thread Held<R>&, const thread Segment&, const thread int (&)[R], int) {}

  template <typename T, int M, int R, int K, bool NORM>
  static void dot(
      thread float (&)[R][M], thread float (&)[M], const thread Held<R>&, const thread Work<T>&, int, int) {}

  template <typename T, int M, int R, int K, bool NORM>
  static void dot_plain(
      thread float (&)[R][M], thread float (&)[M], const thread Segment&, const thread int (&)[R],
      const thread Work<T>&) {}
};

// The lanes' shares of R rows added up, and the norm applied.
template <int M, int R, int K, bool NORM>
inline void finish(thread float (&y)[R][M], const thread float (&squares)[M], float eps) {
  UNROLL
  for (int m = 0; m < M; m++) {
    const float factor = NORM ? rsqrt(simd_sum(squares[m]) / float(K) + eps) : 1.0f;
    UNROLL
    for (int r = 0; r < R; r++) {
      y[r][m] = simd_sum(y[r][m]) * factor;
    }
  }
}

// R rows from `first` on of one segment, and of a second with as many rows, which may be None. Rows past the end repeat
// the last.
template <typename F, typename G, typename T, int M, int R, int K, bool NORM, int SIMDGROUPS>
inline void multiply(
    thread float (&y)[R][M], thread float (&z)[R][M], const thread Segment& f, const thread Segment& g, int first,
    int rows, float eps, const thread Work<T>& work) {
  int row[R];
  UNROLL
  for (int r = 0; r < R; r++) {
    row[r] = min(first + r, rows - 1);
    UNROLL
    for (int m = 0; m < M; m++) {
      y[r][m] = 0.0f;
      z[r][m] = 0.0f;
    }
  }
  float y_squares[M] = {};
  float z_squares[M] = {};
  if (!work.idle) {
    Rows<F>::template dot_plain<T, M, R, K, NORM>(y, y_squares, f, row, work);
    Rows<G>::template dot_plain<T, M, R, K, NORM>(z, z_squares, g, row, work);
  }
  if (Rows<F>::staged || Rows<G>::staged) {
    typedef Tiling<K, M> Tiles;
    const int tile_blocks = Tiles::blocks;
    // A tile of more than one row is a block a lane: its weights are held while the rows of x come four by four.
    const int turns = M == 1 ? tile_blocks : 1;
    typename Rows<F>::template Held<R> of_f;
    typename Rows<G>::template Held<R> of_g;
    for (int tile = 0; tile < int(Tiles::count); tile++) {
      const int blocks = min(tile_blocks, K / 32 - tile * tile_blocks);
      const bool mine = !work.idle && work.lane < blocks;
      if (M > 1 && mine) {
        Rows<F>::template load<R, K>(of_f, f, row, tile * tile_blocks + work.lane);
        Rows<G>::template load<R, K>(of_g, g, row, tile * tile_blocks + work.lane);
      }
      for (int first_row = 0; first_row < M; first_row += Tiles::rows) {
        if (tile > 0 || first_row > 0) {
          threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        stage<T, M, K, NORM, SIMDGROUPS>(work, tile, first_row);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (mine) {
          for (int block = work.lane; block < min(blocks, work.lane + turns); block += 32) {
            if (M == 1) {
              Rows<F>::template load<R, K>(of_f, f, row, tile * tile_blocks + block);
            }
            Rows<F>::template dot<T, M, R, K, NORM>(y, y_squares, of_f, work, block, first_row);
            if (M == 1) {
              Rows<G>::template load<R, K>(of_g, g, row, tile * tile_blocks + block);
            }
            Rows<G>::template dot<T, M, R, K, NORM>(z, z_squares, of_g, work, block, first_row);
          }
        }
      }
    }
  }
  finish<M, R, K, NORM>(y, y_squares, eps);
  if (Rows<G>::present) {
    finish<M, R, K, NORM>(z, z_squares, eps);
  }
}

// With SWIGLU a simdgroup computes R gate rows and the same R up rows.
//
// Bytes: every weight, scale and bias once, in the order of memory. x (and norm) come from the cache, for affine rows
// once a threadgroup, which at SIMDGROUPS = 4 has 16 rows of weights (with SWIGLU 32), for plain ones once a simdgroup.
// RMSNorm needs no pass of its own: the sum of squares grows beside the products, and their sum is scaled at the end.
// Threads: 32 per R rows, 98304 for the 9B's gate and up, several times what a GPU holds; small matrices get small
// threadgroups (plan() says when), or the last ones would leave cores without work. Loads in flight: R bits words a
// thread (at 3 bits 12 words, 1.5 KB a simdgroup) and the scales, all asked for before the first is used: 8 resident
// simdgroups cover 12 KB a core, about what 400 GB/s over 40 cores at 1 us needs. Work: at M = 1 4 operations a weight
// (and, or, subtract, fma; see from_field) and a sixteenth of a load of x. At 3 bits and 400 GB/s that is half of what
// the 40 cores of an M3 Max do. At M rows 3 ceil(M / 4) + M operations. Registers: R bits words, 2 R scales, R M totals
// (with SWIGLU of both), up to 4 R partial sums and 16 x: about 70 at M = 1 and 110 at M = 8; R is 2 where there would
// be more than 32 totals. Threadgroup memory: see Tiling; none but 0.3 KB if all rows are plain.
template <typename T, int M, int R, int K, int SIMDGROUPS, bool NORM, bool RESIDUAL, bool SWIGLU, typename F0,
          typename F1, typename F2, typename F3>
[[kernel, max_total_threads_per_threadgroup(32 * SIMDGROUPS)]] void qmm(
    device const T* x [[buffer(0)]], device const float* norm [[buffer(1)]], device const T* residual [[buffer(2)]],
    device const uchar* w0 [[buffer(3)]], device const uchar* s0 [[buffer(4)]], device const uchar* b0 [[buffer(5)]],
    device const uchar* w1 [[buffer(6)]], device const uchar* s1 [[buffer(7)]], device const uchar* b1 [[buffer(8)]],
    device const uchar* w2 [[buffer(9)]], device const uchar* s2 [[buffer(10)]], device const uchar* b2 [[buffer(11)]],
    device const uchar* w3 [[buffer(12)]], device const uchar* s3 [[buffer(13)]], device const uchar* b3 [[buffer(14)]],
    device T* y [[buffer(15)]], constant QmmParams& p [[buffer(16)]],
    uint threadgroup_ [[threadgroup_position_in_grid]], uint simdgroup_ [[simdgroup_index_in_threadgroup]],
    uint lane_ [[thread_index_in_simdgroup]]) {
  const bool any_staged = Rows<F0>::staged || Rows<F1>::staged || Rows<F2>::staged || Rows<F3>::staged;
  const int staged_blocks = any_staged ? Tiling<K, M>::rows * Tiling<K, M>::blocks : 1;
  threadgroup float4 staged[8 * staged_blocks];
  threadgroup float sums[staged_blocks];
  threadgroup float squares[NORM ? staged_blocks : 1];

  const int lane = int(lane_);
  int s = 0;
  while (!SWIGLU && s + 1 < p.segments && int(threadgroup_) >= p.first_threadgroup[s + 1]) {
    s++;
  }
  const int rows = p.rows[s];
  const int first = ((int(threadgroup_) - p.first_threadgroup[s]) * SIMDGROUPS + int(simdgroup_)) * R;
  Work<T> work;
  work.x = x;
  work.norm = norm;
  work.staged = staged;
  work.sums = sums;
  work.squares = squares;
  work.rows_of_x = p.M;
  work.simdgroup = int(simdgroup_);
  work.lane = lane;
  work.idle = first >= rows;

  const Segment f0 = segment_of(w0, s0, b0);
  const Segment f1 = segment_of(w1, s1, b1);
  const Segment f2 = segment_of(w2, s2, b2);
  const Segment f3 = segment_of(w3, s3, b3);

  float value[R][M];
  float up[R][M];
  if (SWIGLU) {
    multiply<F0, F1, T, M, R, K, NORM, SIMDGROUPS>(value, up, f0, f1, first, rows, p.eps, work);
    UNROLL
    for (int r = 0; r < R; r++) {
      UNROLL
      for (int m = 0; m < M; m++) {
        value[r][m] = silu(value[r][m]) * up[r][m];
      }
    }
  } else if (s == 0) {
    multiply<F0, None, T, M, R, K, NORM, SIMDGROUPS>(value, up, f0, f0, first, rows, p.eps, work);
  } else if (s == 1) {
    multiply<F1, None, T, M, R, K, NORM, SIMDGROUPS>(value, up, f1, f1, first, rows, p.eps, work);
  } else if (s == 2) {
    multiply<F2, None, T, M, R, K, NORM, SIMDGROUPS>(value, up, f2, f2, first, rows, p.eps, work);
  } else {
    multiply<F3, None, T, M, R, K, NORM, SIMDGROUPS>(value, up, f3, f3, first, rows, p.eps, work);
  }
  UNROLL
  for (int r = 0; r < R; r++) {
    UNROLL
    for (int m = 0; m < M; m++) {
      if (lane == r * M + m && first + r < rows && m < p.M) {  // R M <= 32: each lane stores one value
        const size_t at = size_t(m) * size_t(p.N) + size_t(p.first_column[s] + first + r);
        y[at] = T(RESIDUAL ? value[r][m] + float(residual[at]) : value[r][m]);
      }
    }
  }
}
