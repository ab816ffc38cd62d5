// y = epilogue((rmsnorm(x) or x) @ rows^T) for 1 to 16 rows of x: see csrc/ops/qmm.cpp for the formula.
//
// A simdgroup computes R rows of weights for M rows of x. Of affine rows its lanes share out the columns in blocks of
// 32, the least that ends at a word for every width; of plain rows in blocks of 8. Every sum is a chain of explicit
// fmas in the order of the columns, in a block and then over a lane's blocks, and lanes are added in one order, so that
// a row of y has the same bits whatever M and R are, and wherever x is read from.
#include "common.h"
#include "dequant.h"
#include "params.h"
#include "qmm_multiply.h"

// With SWIGLU half of a simdgroup's rows are gate rows, and the others the same up rows.
//
// Bytes: every weight, scale and bias once, in the order of memory. x (and norm) come from the cache, for affine rows
// once a threadgroup, for plain ones once a simdgroup. RMSNorm needs no pass of its own: the sum of squares grows
// beside the products, and their sum is scaled at the end. M is at most 4, of plain rows 8: of more rows of x, tiles of
// so many are threadgroups next to each other, so that all but the first find the weights in the cache.
//
// Threads: 32 per R rows, several times what a GPU holds; small matrices get small threadgroups (plan() says when), or
// the last ones would leave cores without work. A threadgroup of many rows takes several groups of R rows a simdgroup,
// one after the other, where x is staged once for all of them. Loads in flight: R bits words a thread (at 3 bits 12
// words, 1.5 KB a simdgroup) and the scales, asked for before x is staged and before the first is used.
// Slots, registers and what a core holds: docs/measurements/agx.md.
template <typename T, int M, int R, int K, int SIMDGROUPS, int TURNS, bool NORM, bool RESIDUAL, bool SWIGLU,
          typename F0, typename F1, typename F2, typename F3>
[[kernel, max_total_threads_per_threadgroup(32 * SIMDGROUPS)]] void qmm(
    device const T* x [[buffer(0)]], device const float* norm [[buffer(1)]], device const T* residual [[buffer(2)]],
    device const uchar* w0 [[buffer(3)]], device const uchar* s0 [[buffer(4)]], device const uchar* b0 [[buffer(5)]],
    device const uchar* w1 [[buffer(6)]], device const uchar* s1 [[buffer(7)]], device const uchar* b1 [[buffer(8)]],
    device const uchar* w2 [[buffer(9)]], device const uchar* s2 [[buffer(10)]], device const uchar* b2 [[buffer(11)]],
    device const uchar* w3 [[buffer(12)]], device const uchar* s3 [[buffer(13)]], device const uchar* b3 [[buffer(14)]],
    device T* y [[buffer(15)]], constant QmmParams& p [[buffer(16)]],
    uint2 threadgroup_ [[threadgroup_position_in_grid]], uint simdgroup_ [[simdgroup_index_in_threadgroup]],
    uint lane_ [[thread_index_in_simdgroup]]) {
  typedef Tiling<K, M, SIMDGROUPS> Tiles;
  const bool any_staged =
      AffineRows<F0, 0, R>::present || AffineRows<F1, 0, R>::present || AffineRows<F2, 0, R>::present ||
      AffineRows<F3, 0, R>::present;
  const int staged_blocks = any_staged ? M * int(Tiles::blocks) : 1;
  threadgroup float4 staged[any_staged ? int(Tiles::values) : 1];
  threadgroup float sums[staged_blocks];
  threadgroup float squares[NORM ? staged_blocks : 1];

  const int simdgroup = int(simdgroup_);
  const int threadgroup_index = int(threadgroup_.y);
  Work<T> work;
  work.x = x;
  work.norm = norm;
  work.staged = staged;
  work.sums = sums;
  work.squares = squares;
  work.first_row = M == 1 ? 0 : threadgroup_.x * M;
  work.last_row = uint(p.M) - 1;
  work.thread_index = simdgroup_ * 32 + lane_;
  work.lane = lane_;

  const bool one_tile = int(Tiles::count) == 1 && int(Tiles::halves) == 1;  // x stays staged

  // Which segment: known bounds one after the other, so that all of it comes with the arguments.
  const int EACH = SWIGLU ? R / 2 : R;
  Chosen chosen;
  chosen.first = segment_of(w0, s0, b0);
  chosen.second = segment_of(w1, s1, b1);
  int s = 0;
  int rows = p.rows[0];
  int before = 0;
  int column = p.first_column[0];
  if (!SWIGLU && !is_same_v<F1, None> && threadgroup_index >= p.first_threadgroup[1]) {
    s = is_same_v<F1, F0> ? 0 : 1;
    chosen.first = segment_of(w1, s1, b1);
    rows = p.rows[1];
    before = p.first_threadgroup[1];
    column = p.first_column[1];
  }
  if (!is_same_v<F2, None> && threadgroup_index >= p.first_threadgroup[2]) {
    s = is_same_v<F2, F0> ? 0 : is_same_v<F2, F1> ? 1 : 2;
    chosen.first = segment_of(w2, s2, b2);
    rows = p.rows[2];
    before = p.first_threadgroup[2];
    column = p.first_column[2];
  }
  if (!is_same_v<F3, None> && threadgroup_index >= p.first_threadgroup[3]) {
    s = is_same_v<F3, F0> ? 0 : is_same_v<F3, F1> ? 1 : is_same_v<F3, F2> ? 2 : 3;
    chosen.first = segment_of(w3, s3, b3);
    rows = p.rows[3];
    before = p.first_threadgroup[3];
    column = p.first_column[3];
  }
  KEEP_LOOP
  for (int turn = 0; turn < TURNS; turn++) {
    const int first = (((threadgroup_index - before) * TURNS + turn) * SIMDGROUPS + simdgroup) * EACH;
    work.idle = first >= rows;
    chosen.row = uint(min(first, rows - EACH));  // the last rows may be computed twice; R is small where there are few
    const bool is_staged = one_tile && turn > 0;
    float total[M * R];
    float f_squares[M];
    float g_squares[M];
    if (SWIGLU && !is_same_v<F0, F1>) {
      multiply<F0, F1, EACH, M, R, K, SIMDGROUPS, NORM>(total, f_squares, g_squares, chosen, work, is_staged);
    } else if (s == 0) {
      multiply<F0, None, EACH, M, R, K, SIMDGROUPS, NORM>(total, f_squares, g_squares, chosen, work, is_staged);
    } else if (!is_same_v<F1, F0> && s == 1) {
      multiply<F1, None, EACH, M, R, K, SIMDGROUPS, NORM>(total, f_squares, g_squares, chosen, work, is_staged);
    } else if (!is_same_v<F2, F0> && !is_same_v<F2, F1> && s == 2) {
      multiply<F2, None, EACH, M, R, K, SIMDGROUPS, NORM>(total, f_squares, g_squares, chosen, work, is_staged);
    } else {
      multiply<F3, None, EACH, M, R, K, SIMDGROUPS, NORM>(total, f_squares, g_squares, chosen, work, is_staged);
    }
    const uint lanes = 32 / (M * R);  // that have the same value
    const uint m = work.first_row + lane_ / lanes / R;
    const int r = int(lane_ / lanes % R);
    float value = sum_over_lanes(total, lane_);
    if (NORM) {
      float square = sum_over_lanes(f_squares, lane_);
      if (SWIGLU && !is_same_v<F0, F1>) {
        const float of_second = sum_over_lanes(g_squares, lane_);
        square = r < EACH ? square : of_second;
      }
      value *= precise::rsqrt(square / float(K) + p.eps);
    }
    if (SWIGLU) {
      value = silu(value) * simd_shuffle_xor(value, ushort(EACH * lanes));
    }
    const int row = int(chosen.row) + r;
    if (lane_ % lanes == 0 && r < EACH && row >= first && m <= work.last_row) {
      const uint at = m * uint(p.N) + uint(column + row);
      y[at] = T(RESIDUAL ? value + float(residual[at]) : value);
    }
  }
}
