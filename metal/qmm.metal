// y = epilogue((rmsnorm(x) or x) @ rows^T) for 1 to 16 rows of x: see csrc/ops/qmm.h for the formula.
//
// A simdgroup computes R rows of one segment for all M rows of x. Of affine rows its lanes share out the columns in
// blocks of 32, the least that ends at a word for every width; of plain rows in blocks of 8. Every sum is a chain of
// explicit fmas in the order of the columns, in a block and then over a lane's blocks, so that a row of y has the same
// bits whatever M and R are, and wherever x is read from.
#include "common.h"
#include "dequant.h"
#include "params.h"

// One row of x is staged in threadgroup memory, as floats and times the norm, in tiles of so many columns: 8.5 KB, so
// that a core with 60 KB for them holds six threadgroups, of which some compute while others stage.
template <int K>
struct Tiling {
  enum { columns = K < 2048 ? K : 2048, blocks = (columns + 31) / 32, count = (K + columns - 1) / columns };
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
  threadgroup float4* staged;  // columns 4 j .. 4 j + 3 of a tile's block b of 32 at j Tiling::blocks + b
  threadgroup float* sums;     // of each block of a tile
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
// lane, and with R = 4 rows of 3 bits more than three times the bytes of the weights, all through the cache; staged, it is
// done once a threadgroup, and lanes then read consecutive 16 bytes. Conversions and the norm are paid once, too.
template <typename T, int K, bool NORM, int SIMDGROUPS>
inline void stage(const thread Work<T>& work, int tile) {
  const int tile_blocks = Tiling<K>::blocks;
  const int blocks = min(tile_blocks, K / 32 - tile * tile_blocks);
  for (int block = work.simdgroup * 32 + work.lane; block < blocks; block += 32 * SIMDGROUPS) {
    const int column = (tile * tile_blocks + block) * 32;
    float sum = 0.0f;
    float square = 0.0f;
    UNROLL
    for (int j = 0; j < 8; j += 2) {
      float v[8];
      float scale[8] = {};
      load8(work.x + column + j * 4, v);
      if (NORM) {
        load8(work.norm + column + j * 4, scale);
      }
      UNROLL
      for (int i = 0; i < 8; i++) {
        take<NORM>(v[i], scale[i], sum, square);
      }
      work.staged[j * tile_blocks + block] = float4(v[0], v[1], v[2], v[3]);
      work.staged[(j + 1) * tile_blocks + block] = float4(v[4], v[5], v[6], v[7]);
    }
    work.sums[block] = sum;
    if (NORM) {
      work.squares[block] = square;
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

// One segment's R rows, this lane's share of their columns.
template <typename S, int bits, int group_size>
struct Rows<Affine<S, bits, group_size>> {
  enum { staged = true, present = true };

  template <typename T, int M, int R, int K, bool NORM>
  static void dot(
      thread float (&total)[R][M], thread float (&squares)[M], const thread Segment& segment,
      const thread int (&row)[R], const thread Work<T>& work, int tile) {
    const int tile_blocks = Tiling<K>::blocks;
    const int all = K / 32;
    const int first = M == 1 ? tile * tile_blocks : 0;
    const int end = M == 1 ? min(first + tile_blocks, all) : all;
    for (int block = first + work.lane; block < end; block += 32) {
      uint words[R][bits];
      float scale[R];
      float bias[R];
      UNROLL
      for (int r = 0; r < R; r++) {  // everything this block needs of memory is asked for before it is used
        device const uint* from = (device const uint*)segment.weights + size_t(row[r]) * size_t(all * bits) + block * bits;
        load_words<bits>(from, words[r]);
        const size_t group = size_t(row[r]) * size_t(K / group_size) + size_t(block * 32 / group_size);
        scale[r] = float(((device const S*)segment.scales)[group]);
        bias[r] = float(((device const S*)segment.biases)[group]);
      }
      float partial[R][M] = {};
      float sum[M] = {};
      float square[M] = {};
      if (M == 1) {
        const int of_tile = block - first;
        UNROLL
        for (int j = 0; j < 8; j++) {
          const float4 v = work.staged[j * tile_blocks + of_tile];
          UNROLL
          for (int i = 0; i < 4; i++) {
            UNROLL
            for (int r = 0; r < R; r++) {
              partial[r][0] = fma(unpack<bits>(words[r], 4 * j + i), v[i], partial[r][0]);
            }
          }
        }
        sum[0] = work.sums[of_tile];
        square[0] = NORM ? work.squares[of_tile] : 0.0f;
      } else {
        UNROLL
        for (int j = 0; j < 4; j++) {
          float w[R][8];
          UNROLL
          for (int r = 0; r < R; r++) {
            UNROLL
            for (int i = 0; i < 8; i++) {
              w[r][i] = unpack<bits>(words[r], 8 * j + i);
            }
          }
          accumulate8<T, M, R, K, NORM, true>(partial, sum, square, w, work, block * 32 + j * 8);
        }
      }
      UNROLL
      for (int m = 0; m < M; m++) {
        squares[m] += square[m];
        UNROLL
        for (int r = 0; r < R; r++) {
          total[r][m] = fma(scale[r], partial[r][m], fma(bias[r], sum[m], total[r][m]));
        }
      }
    }
  }
};

// The same for plain rows: every 32nd block of 8, which a simdgroup reads as 512 (half types) consecutive bytes, of the
// weights and of x alike.
template <typename W, bool aligned>
struct Rows<Plain<W, aligned>> {
  enum { staged = false, present = true };

  template <typename T, int M, int R, int K, bool NORM>
  static void dot(
      thread float (&total)[R][M], thread float (&squares)[M], const thread Segment& segment,
      const thread int (&row)[R], const thread Work<T>& work, int) {
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

  template <typename T, int M, int R, int K, bool NORM>
  static void dot(
      thread float (&)[R][M], thread float (&)[M], const thread Segment&, const thread int (&)[R],
      const thread Work<T>&, int) {}
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
  const bool f_staged = M == 1 && Rows<F>::staged;
  const bool g_staged = M == 1 && Rows<G>::staged;
  const int tiles = f_staged || g_staged ? int(Tiling<K>::count) : 1;
  for (int tile = 0; tile < tiles; tile++) {
    if (f_staged || g_staged) {
      if (tile > 0) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      stage<T, K, NORM, SIMDGROUPS>(work, tile);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (!work.idle) {
      if (f_staged || tile == 0) {
        Rows<F>::template dot<T, M, R, K, NORM>(y, y_squares, f, row, work, tile);
      }
      if (g_staged || tile == 0) {
        Rows<G>::template dot<T, M, R, K, NORM>(z, z_squares, g, row, work, tile);
      }
    }
  }
  finish<M, R, K, NORM>(y, y_squares, eps);
  if (Rows<G>::present) {
    finish<M, R, K, NORM>(z, z_squares, eps);
  }
}

// With SWIGLU a simdgroup computes R gate rows and then the same R up rows.
//
// Bytes: every weight, scale and bias once, in the order of memory. x (and norm) come from the cache: for one row of x
// once a threadgroup, which at SIMDGROUPS = 4 has 16 rows of weights (with SWIGLU 32); else once a simdgroup. RMSNorm
// needs no pass of its own: the sum of squares grows beside the products, and their sum is scaled at the end.
// Threads: 32 per R rows, 98304 for the 9B's gate and up, several times what a GPU holds; small matrices get small
// threadgroups (plan() says when), or the last ones would leave cores without work. Loads in flight: R bits words a
// thread (at 3 bits 12 words, 1.5 KB a simdgroup) and the scales, all asked for before the first is used: 8 resident
// simdgroups cover 12 KB a core, about what 400 GB/s over 40 cores at 1 us needs.
// Work: 4 operations a weight (and, or, subtract, fma; see from_field) and a sixteenth of a load of x. At 3 bits and
// 400 GB/s that is half of what the 40 cores of an M3 Max do.
// Registers: R bits words, 4 R sums and scales, 4 x and a weight or two, about 60 at M = 1; for more rows of x 8 R
// weights, 8 x, 8 norm and 2 R M sums, about 90 at M = 4; R is 2 for M > 4, where it would be 200 otherwise.
// Threadgroup memory: 8.5 KB for M = 1 (see Tiling), none for more rows.
template <typename T, int M, int R, int K, int SIMDGROUPS, bool NORM, bool RESIDUAL, bool SWIGLU, typename F0,
          typename F1, typename F2, typename F3>
[[kernel, max_total_threads_per_threadgroup(32 * SIMDGROUPS)]] void qmm(
    device const T* x [[buffer(0)]], device const float* norm [[buffer(1)]], device const T* residual [[buffer(2)]],
    device const uchar* w0 [[buffer(3)]], device const uchar* s0 [[buffer(4)]], device const uchar* b0 [[buffer(5)]],
    device const uchar* w1 [[buffer(6)]], device const uchar* s1 [[buffer(7)]], device const uchar* b1 [[buffer(8)]],
    device const uchar* w2 [[buffer(9)]], device const uchar* s2 [[buffer(10)]], device const uchar* b2 [[buffer(11)]],
    device const uchar* w3 [[buffer(12)]], device const uchar* s3 [[buffer(13)]], device const uchar* b3 [[buffer(14)]],
    device T* y [[buffer(15)]], constant QmmParams& p [[buffer(16)]], uint threadgroup_ [[threadgroup_position_in_grid]],
    uint simdgroup_ [[simdgroup_index_in_threadgroup]], uint lane_ [[thread_index_in_simdgroup]]) {
  const bool any_staged =
      M == 1 && (Rows<F0>::staged || Rows<F1>::staged || Rows<F2>::staged || Rows<F3>::staged);
  threadgroup float4 staged[any_staged ? Tiling<K>::blocks * 8 : 1];
  threadgroup float sums[any_staged ? Tiling<K>::blocks : 1];
  threadgroup float squares[any_staged && NORM ? Tiling<K>::blocks : 1];

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
