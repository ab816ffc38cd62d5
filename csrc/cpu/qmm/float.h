// qmm in float: any weights, any instruction set. Rows of weights become floats once for all rows of x.
//
// Plain weights are read as they are stored; packed ones go through a panel of 4 rows x 512 columns (8 KB, stays in
// L1). A tile of 4 weight rows x kTileRows rows of x is held in registers: 4 loads of weights and kTileRows of x
// for 4 kTileRows multiply-adds.
#pragma once

#include "cpu/runtime/threads.h"
#include "cpu/simd/rows.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int kUnitRows = 16;              // weight rows of a unit of work
inline constexpr int64_t kRunRows = 32;           // that several rows of x in fixed point take at a time
inline constexpr int64_t kPanel = 512;            // columns of a panel
inline constexpr int kRows = 4;                   // weight rows of a register tile
inline constexpr int kTileRows = W == 8 ? 2 : 4;  // rows of x of one: 16 registers with AVX2, 32 elsewhere
inline constexpr bool kStreamed = W == 8;         // plain weights and a few rows of x, else by tiles
inline constexpr int64_t kFewFloats = 6 * 1024;   // of those rows, 24 KB

// Calls f with a packed matrix's width and group size as constants.
template <typename Function>
inline void for_width(const MatrixView& matrix, const Function& f) {
  const auto width = [&](auto bits) {
    if (matrix.group_size == 32) return f(bits, std::integral_constant<int, 32>{});
    if (matrix.group_size == 64) return f(bits, std::integral_constant<int, 64>{});
    return f(bits, std::integral_constant<int, 128>{});
  };
  switch (matrix.bits) {
    case 2:
      return width(std::integral_constant<int, 2>{});
    case 3:
      return width(std::integral_constant<int, 3>{});
    case 4:
      return width(std::integral_constant<int, 4>{});
    case 5:
      return width(std::integral_constant<int, 5>{});
    case 6:
      return width(std::integral_constant<int, 6>{});
    case 8:
      return width(std::integral_constant<int, 8>{});
  }
}

// Calls f with a value of a plain matrix's type.
template <typename Function>
void for_type(const MatrixView& matrix, const Function& f) {
  if (matrix.type == DType::bf16) return f(bf16{});
  if (matrix.type == DType::f16) return f(f16{});
  return f(float{});
}

// Whether plain rows are converted as they are read: again for every few rows of x, which costs less than a pass
// through a panel, up to some of them.
inline bool reads_plain(const MatrixView& matrix, int64_t M) { return matrix.bits == 0 && M <= 16; }

// x as floats, with the norm weight folded in.
struct FloatX {
  const float* data;  // [M, stride], zero beyond K
  int64_t stride;
};

// acc[m][r] (vectors) += sum over the columns of R weight rows times `rows` rows of x, with `stride` floats from one m
// to the next. Each acc has its own order of additions, the same whatever `rows` and R are.
template <int rows, int R, typename TW>
inline void multiply_tile(const TW* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t count, float* acc,
                          int64_t acc_stride) {
  const Ahead ahead = R == 1 ? stream_ahead() : Ahead{};
  F a[rows][R];
  MLX_DELTA_UNROLL
  for (int m = 0; m < rows; ++m) MLX_DELTA_UNROLL
  for (int r = 0; r < R; ++r) a[m][r] = load(acc + m * acc_stride + r * W);
  int64_t k = 0;
  for (; k + W <= count; k += W) {
    F wk[R];
    MLX_DELTA_UNROLL
    for (int r = 0; r < R; ++r) {
      wk[r] = load(w + r * w_stride + k);
      if constexpr (R == 1) prefetch_stream(w + k, ahead);
    }
    MLX_DELTA_UNROLL
    for (int m = 0; m < rows; ++m) {
      const F xk = load(x + m * x_stride + k);
      MLX_DELTA_UNROLL
      for (int r = 0; r < R; ++r) a[m][r] += wk[r] * xk;
    }
  }
  if (k < count) MLX_DELTA_UNROLL
  for (int r = 0; r < R; ++r) {
    const F wk = load_part(w + r * w_stride + k, count - k);
    MLX_DELTA_UNROLL
    for (int m = 0; m < rows; ++m) a[m][r] += wk * load(x + m * x_stride + k);
  }
  MLX_DELTA_UNROLL
  for (int m = 0; m < rows; ++m) MLX_DELTA_UNROLL
  for (int r = 0; r < R; ++r) store(a[m][r], acc + m * acc_stride + r * W);
}

// R weight rows times all M rows of x.
template <int R, typename TW>
inline void multiply_rows(const TW* w, int64_t w_stride, const FloatX& x, int64_t first, int64_t M, int64_t count,
                          float* acc) {
  constexpr int64_t acc_stride = kRows * W;
  const float* xm = x.data + first;
  const auto some = [&](int64_t m, auto rows) {
    multiply_tile<decltype(rows)::value, R>(w, w_stride, xm + m * x.stride, x.stride, count, acc + m * acc_stride,
                                            acc_stride);
  };
  int64_t m = 0;
  for (; m + kTileRows <= M; m += kTileRows) some(m, std::integral_constant<int, kTileRows>{});
  if constexpr (kTileRows == 4)
    for (; m + 2 <= M; m += 2) some(m, std::integral_constant<int, 2>{});
  for (; m < M; ++m) some(m, std::integral_constant<int, 1>{});
}

// Plain rows, without a panel: R = 1 for one row of x, since a single stream of memory is read fastest.
template <typename TW>
void multiply_plain(const MatrixView& matrix, int64_t n, int64_t count, const FloatX& x, int64_t M, float* acc) {
  const int64_t K = matrix.cols;
  const TW* w = static_cast<const TW*>(matrix.data) + n * K;
  if (M > 1 && count == kRows) return multiply_rows<kRows>(w, K, x, 0, M, K, acc);
  for (int64_t r = 0; r < count; ++r) multiply_rows<1>(w + r * K, K, x, 0, M, K, acc + r * W);
}

// acc[r][m] (vectors) += a piece of R plain weight rows times `rows` rows of x from column `first` on, while pieces
// from `ahead` on are asked for.
template <int rows, int R, typename TW>
void multiply_plain_piece(const TW* w, int64_t w_stride, const TW* ahead, const FloatX& x, int64_t first, int64_t count,
                          float* acc, int64_t acc_stride) {
  constexpr int64_t line = 64 / int64_t{sizeof(TW)};
  const float* xm = x.data + first;
  F a[R][rows];
  MLX_DELTA_UNROLL
  for (int r = 0; r < R; ++r) MLX_DELTA_UNROLL
  for (int m = 0; m < rows; ++m) a[r][m] = load(acc + r * acc_stride + m * W);
  const auto add = [&](int64_t k, auto read) __attribute__((always_inline)) {
    F wk[R];
    MLX_DELTA_UNROLL
    for (int r = 0; r < R; ++r) wk[r] = read(w + r * w_stride + k);
    MLX_DELTA_UNROLL
    for (int m = 0; m < rows; ++m) {
      const F xk = load(xm + m * x.stride + k);
      MLX_DELTA_UNROLL
      for (int r = 0; r < R; ++r) a[r][m] += wk[r] * xk;
    }
  };
  const auto whole = [](const TW* p) __attribute__((always_inline)) { return load(p); };
  int64_t k = 0;
  for (; k + line <= count; k += line) {
    MLX_DELTA_UNROLL
    for (int r = 0; r < R; ++r) prefetch(ahead + r * w_stride + k);
    MLX_DELTA_UNROLL
    for (int64_t i = 0; i < line; i += W) add(k + i, whole);
  }
  for (; k + W <= count; k += W) add(k, whole);
  if (k < count) add(k, [&](const TW* p) { return load_part(p, count - k); });
  MLX_DELTA_UNROLL
  for (int r = 0; r < R; ++r) MLX_DELTA_UNROLL
  for (int m = 0; m < rows; ++m) store(a[r][m], acc + r * acc_stride + m * W);
}

template <typename TW>
using MultiplyPlainPiece = void (*)(const TW*, int64_t, const TW*, const FloatX&, int64_t, int64_t, float*, int64_t);

// out[m * kUnitRows + r] = row n + r of a plain matrix times row m of x, for r < count <= kUnitRows. Two weight rows at
// a time, whose sums do not wait for each other as those of one do, for up to five rows of x; one for more, whose sums
// fill the registers. They pass by for as many columns as x leaves room for in L1.
template <typename TW>
void multiply_streamed(const MatrixView& matrix, int64_t n, int64_t count, const FloatX& x, int64_t M, float* out) {
  static constexpr MultiplyPlainPiece<TW> of_one[] = {
      multiply_plain_piece<1, 1, TW>, multiply_plain_piece<2, 1, TW>, multiply_plain_piece<3, 1, TW>,
      multiply_plain_piece<4, 1, TW>, multiply_plain_piece<5, 1, TW>, multiply_plain_piece<6, 1, TW>,
      multiply_plain_piece<7, 1, TW>, multiply_plain_piece<8, 1, TW>,
  };
  static constexpr MultiplyPlainPiece<TW> of_two[] = {
      multiply_plain_piece<1, 2, TW>, multiply_plain_piece<2, 2, TW>, multiply_plain_piece<3, 2, TW>,
      multiply_plain_piece<4, 2, TW>, multiply_plain_piece<5, 2, TW>,
  };
  constexpr int64_t most_rows = sizeof(of_one) / sizeof(of_one[0]), rows_of_two = sizeof(of_two) / sizeof(of_two[0]);
  const int64_t K = matrix.cols, passes = (K * M + kFewFloats - 1) / kFewFloats;
  const int64_t columns = ((K + passes - 1) / passes + 63) / 64 * 64, R = M <= rows_of_two ? 2 : 1;
  const TW* w = static_cast<const TW*>(matrix.data) + n * K;
  const int64_t piece = columns * int64_t{sizeof(TW)};
  const int64_t rows_ahead = least(most<int64_t>(1, stream_ahead().far / piece / R) * R, count);
  const int64_t acc_stride = M * W;
  float* acc = scratch_of<float>(3, count * acc_stride);
  fill(acc, count * acc_stride, 0.0f);
  for (int64_t k = 0; k < K; k += columns) {
    const int64_t left = least(columns, K - k);
    // Beyond the last row come the first ones' next columns, or the rows that follow.
    const TW* after = k + columns < K ? w + k + columns : w + count * K;
    for (int64_t r = 0; r < count;) {
      const bool two = R == 2 && r + 2 <= count;
      const int64_t asked = r + rows_ahead;
      const TW* ahead = asked < count ? w + asked * K + k : after + (asked - count) * K;
      for (int64_t m = 0; m < M; m += most_rows) {
        const auto multiply = (two ? of_two : of_one)[least(most_rows, M - m) - 1];
        multiply(w + r * K + k, K, ahead, x, m * x.stride + k, left, acc + r * acc_stride + m * W, acc_stride);
      }
      r += two ? 2 : 1;
    }
  }
  for (int64_t r = 0; r < count; ++r)
    for (int64_t m = 0; m < M; ++m) out[m * kUnitRows + r] = sum(load(acc + r * acc_stride + m * W));
}

// out[m * kUnitRows + r] = row n + r of the matrix times row m of x, for r < count <= kRows.
inline void multiply_four(const MatrixView& matrix, int64_t n, int64_t count, const FloatX& x, int64_t M, float* out) {
  float* acc = scratch_of<float>(3, M * kRows * W);
  std::memset(acc, 0, size_t(M) * kRows * W * sizeof(float));
  if (reads_plain(matrix, M)) {
    if constexpr (!kStreamed)
      for_type(matrix, [&](auto type) { multiply_plain<decltype(type)>(matrix, n, count, x, M, acc); });
  } else {
    alignas(64) float panel[kRows * kPanel];
    for (int64_t k = 0; k < matrix.cols; k += kPanel) {
      const int64_t columns = least(kPanel, matrix.cols - k);
      for (int64_t r = 0; r < kRows; ++r)  // the last row stands in for missing ones
        read_columns(matrix, n + least(r, count - 1), k, columns, panel + r * kPanel);
      multiply_rows<kRows>(panel, kPanel, x, k, M, columns, acc);
    }
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t r = 0; r < count; ++r) out[m * kUnitRows + r] = sum(load(acc + (m * kRows + r) * W));
}

// The same for count <= kUnitRows.
inline void multiply_float(const MatrixView& matrix, int64_t n, int64_t count, const FloatX& x, int64_t M, float* out) {
  if constexpr (kStreamed)
    if (reads_plain(matrix, M))
      return for_type(matrix, [&](auto type) { multiply_streamed<decltype(type)>(matrix, n, count, x, M, out); });
  for (int64_t r = 0; r < count; r += kRows)
    multiply_four(matrix, n + r, least<int64_t>(kRows, count - r), x, M, out + r);
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
