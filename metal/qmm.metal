// y = epilogue((rmsnorm(x) or x) @ rows^T) for 1 to 16 rows of x: see csrc/ops/qmm.h for the formula.
#include "common.h"
#include "dequant.h"
#include "params.h"

// Eight values of row m of x, at column k, and what the norm needs of them.
template <typename T, bool ALIGNED>
inline void load8(device const T* from, int count, thread float* to) {
  if (ALIGNED) {
    load4(from, to);
    load4(from + 4, to + 4);
  } else {
    UNROLL
    for (int i = 0; i < 8; i++) {
      to[i] = i < count ? float(from[i]) : 0.0f;
    }
  }
}

// Eight columns of x against eight columns of R rows of weights. Every sum is a chain of explicit fmas in the order of
// the columns, so that a row of y has the same bits whatever M and R are.
template <typename T, int M, int R, bool NORM, bool ALIGNED>
inline void accumulate8(
    thread float (&partial)[R][M], thread float (&sum)[M], thread float (&squares)[M], const thread float (&w)[R][8],
    device const T* x, device const float* norm, int rows_of_x, int K, int k) {
  float scale[8];
  if (NORM) {
    load8<float, ALIGNED>(norm + k, K - k, scale);
  }
  UNROLL
  for (int m = 0; m < M; m++) {
    float v[8];
    load8<T, ALIGNED>(x + min(m, rows_of_x - 1) * K + k, K - k, v);
    UNROLL
    for (int i = 0; i < 8; i++) {
      if (NORM) {
        squares[m] = fma(v[i], v[i], squares[m]);
        sum[m] = fma(v[i], scale[i], sum[m]);
        v[i] *= scale[i];
      } else {
        sum[m] += v[i];
      }
      UNROLL
      for (int r = 0; r < R; r++) {
        partial[r][m] = fma(w[r][i], v[i], partial[r][m]);
      }
    }
  }
}

template <typename F>
struct Rows;

// One segment's R rows, this lane's share of their columns: every 32nd block of 32.
template <typename S, int bits, int group_size>
struct Rows<Affine<S, bits, group_size>> {
  template <typename T, int M, int R, bool NORM>
  static void dot(
      thread float (&total)[R][M], thread float (&squares)[M], device const uchar* weights, device const uchar* scales,
      device const uchar* biases, const thread int (&row)[R], device const T* x, device const float* norm,
      int rows_of_x, int K, int lane) {
    const int blocks = K / 32;
    for (int block = lane; block < blocks; block += 32) {
      uint words[R][bits];
      float scale[R];
      float bias[R];
      UNROLL
      for (int r = 0; r < R; r++) {  // everything this block needs of memory is asked for before it is used
        device const uint* from = (device const uint*)weights + size_t(row[r]) * size_t(blocks * bits) + block * bits;
        UNROLL
        for (int i = 0; i < bits; i++) {
          words[r][i] = from[i];
        }
        const size_t group = size_t(row[r]) * size_t(K / group_size) + size_t(block * 32 / group_size);
        scale[r] = float(((device const S*)scales)[group]);
        bias[r] = float(((device const S*)biases)[group]);
      }
      float partial[R][M] = {};
      float sum[M] = {};
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
        accumulate8<T, M, R, NORM, true>(partial, sum, squares, w, x, norm, rows_of_x, K, block * 32 + j * 8);
      }
      UNROLL
      for (int r = 0; r < R; r++) {
        UNROLL
        for (int m = 0; m < M; m++) {
          total[r][m] = fma(scale[r], partial[r][m], fma(bias[r], sum[m], total[r][m]));
        }
      }
    }
  }
};

// The same for plain rows: every 32nd block of 8, which a simdgroup reads as 512 (half types) consecutive bytes.
template <typename W, bool aligned>
struct Rows<Plain<W, aligned>> {
  template <typename T, int M, int R, bool NORM>
  static void dot(
      thread float (&total)[R][M], thread float (&squares)[M], device const uchar* weights, device const uchar*,
      device const uchar*, const thread int (&row)[R], device const T* x, device const float* norm, int rows_of_x,
      int K, int lane) {
    float sum[M] = {};
    for (int k = lane * 8; k < K; k += 256) {
      float w[R][8];
      UNROLL
      for (int r = 0; r < R; r++) {
        load8<W, aligned>((device const W*)weights + size_t(row[r]) * size_t(K) + k, K - k, w[r]);
      }
      accumulate8<T, M, R, NORM, aligned>(total, sum, squares, w, x, norm, rows_of_x, K, k);
    }
  }
};

template <>
struct Rows<None> {
  template <typename T, int M, int R, bool NORM>
  static void dot(
      thread float (&)[R][M], thread float (&)[M], device const uchar*, device const uchar*, device const uchar*,
      const thread int (&)[R], device const T*, device const float*, int, int, int) {}
};

// R rows from `first` on, finished: the lanes' shares added up and the norm applied. Rows past the end repeat the last.
template <typename F, typename T, int M, int R, bool NORM>
inline void multiply(
    thread float (&y)[R][M], device const uchar* weights, device const uchar* scales, device const uchar* biases,
    int first, int rows, device const T* x, device const float* norm, constant QmmParams& p, int lane) {
  int row[R];
  UNROLL
  for (int r = 0; r < R; r++) {
    row[r] = min(first + r, rows - 1);
  }
  float squares[M] = {};
  UNROLL
  for (int r = 0; r < R; r++) {
    UNROLL
    for (int m = 0; m < M; m++) {
      y[r][m] = 0.0f;
    }
  }
  Rows<F>::template dot<T, M, R, NORM>(y, squares, weights, scales, biases, row, x, norm, p.M, p.K, lane);
  UNROLL
  for (int m = 0; m < M; m++) {
    const float factor = NORM ? rsqrt(simd_sum(squares[m]) / float(p.K) + p.eps) : 1.0f;
    UNROLL
    for (int r = 0; r < R; r++) {
      y[r][m] = simd_sum(y[r][m]) * factor;
    }
  }
}

// A simdgroup computes R rows of one segment for all M rows of x; a threadgroup is four simdgroups that share nothing
// but the cache. With SWIGLU it computes R gate rows and then the same R up rows.
//
// Bytes: every weight, scale and bias once, in the order of memory; x (and norm) once per simdgroup, from the cache:
// 2 K bytes per R = 4 rows of 3 K / 8 bytes each. RMSNorm needs no pass of its own: the sum of squares grows beside the
// products, and their sum is scaled at the end. Threads: 32 per R rows, 98304 for the 9B's gate and up, several times
// what a GPU can hold. Loads in flight: R bits words a thread (12 at 3 bits: 1.5 KB a simdgroup) and the scales, all
// asked for before the first is used. Registers: R bits words, 8 R weights, 8 x, 8 norm, 2 R M sums, about 90 at M = 1
// and R = 4; R is 2 for more than 4 rows of x, where it would be 200 otherwise.
template <typename T, int M, int R, bool NORM, bool RESIDUAL, bool SWIGLU, typename F0, typename F1, typename F2,
          typename F3>
[[kernel, max_total_threads_per_threadgroup(128)]] void qmm(
    device const T* x [[buffer(0)]], device const float* norm [[buffer(1)]], device const T* residual [[buffer(2)]],
    device const uchar* w0 [[buffer(3)]], device const uchar* s0 [[buffer(4)]], device const uchar* b0 [[buffer(5)]],
    device const uchar* w1 [[buffer(6)]], device const uchar* s1 [[buffer(7)]], device const uchar* b1 [[buffer(8)]],
    device const uchar* w2 [[buffer(9)]], device const uchar* s2 [[buffer(10)]], device const uchar* b2 [[buffer(11)]],
    device const uchar* w3 [[buffer(12)]], device const uchar* s3 [[buffer(13)]], device const uchar* b3 [[buffer(14)]],
    device T* y [[buffer(15)]], constant QmmParams& p [[buffer(16)]], uint threadgroup_ [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane_ [[thread_index_in_simdgroup]]) {
  const int lane = int(lane_);
  int s = 0;
  while (!SWIGLU && s + 1 < p.segments && int(threadgroup_) >= p.first_threadgroup[s + 1]) {
    s++;
  }
  const int rows = p.rows[s];
  const int first = ((int(threadgroup_) - p.first_threadgroup[s]) * 4 + int(simdgroup)) * R;
  if (first >= rows) {
    return;
  }
  float value[R][M];
  if (SWIGLU) {
    float up[R][M];
    multiply<F0, T, M, R, NORM>(value, w0, s0, b0, first, rows, x, norm, p, lane);
    multiply<F1, T, M, R, NORM>(up, w1, s1, b1, first, rows, x, norm, p, lane);
    UNROLL
    for (int r = 0; r < R; r++) {
      UNROLL
      for (int m = 0; m < M; m++) {
        value[r][m] = silu(value[r][m]) * up[r][m];
      }
    }
  } else if (s == 0) {
    multiply<F0, T, M, R, NORM>(value, w0, s0, b0, first, rows, x, norm, p, lane);
  } else if (s == 1) {
    multiply<F1, T, M, R, NORM>(value, w1, s1, b1, first, rows, x, norm, p, lane);
  } else if (s == 2) {
    multiply<F2, T, M, R, NORM>(value, w2, s2, b2, first, rows, x, norm, p, lane);
  } else {
    multiply<F3, T, M, R, NORM>(value, w3, s3, b3, first, rows, x, norm, p, lane);
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
