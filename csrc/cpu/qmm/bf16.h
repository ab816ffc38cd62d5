// qmm on plain bfloat16 rows with AVX512-BF16, for x that needs no norm: vdpbf16ps adds 32 products of bfloat16 to 16
// float32 sums. Each product is exact; the sums of one weight row and one row of x are one vector, in the order of the
// columns, whatever the number of rows.
#pragma once

#if defined(__AVX512BF16__)

#include "cpu/qmm/float.h"
#include "cpu/qmm/lanes_avx512.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline __m512bh load_pairs(const bf16* p, __mmask32 mask) {
  const __m512i x = _mm512_maskz_loadu_epi16(mask, p);
  return (__m512bh)x;
}

// acc[m, r] += columns [0, count) of NR weight rows times MR rows of x. Each has two vectors, for every other 32
// columns: one chain of products would wait for itself. `ask(k)` prefetches what goes with
// the 64 columns from k on.
template <int MR, int NR, typename Ask>
inline void multiply_pairs(const bf16* w, int64_t w_stride, const bf16* x, int64_t x_stride, int64_t count,
                           const Ask& ask, float* acc_at) {
  __m512 acc[MR][NR][2];
  MLX_DELTA_UNROLL
  for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
  for (int r = 0; r < 2 * NR; ++r) acc[m][r / 2][r % 2] = _mm512_load_ps(acc_at + (m * 2 * kUnitRows + r) * 16);
  const auto step = [&](int64_t k, int chain, __mmask32 mask) __attribute__((always_inline)) {
    __m512bh wk[NR];
    MLX_DELTA_UNROLL
    for (int r = 0; r < NR; ++r) {
      wk[r] = load_pairs(w + r * w_stride + k, mask);
    }
    MLX_DELTA_UNROLL
    for (int m = 0; m < MR; ++m) {
      const __m512bh xk = load_pairs(x + m * x_stride + k, mask);
      MLX_DELTA_UNROLL
      for (int r = 0; r < NR; ++r) acc[m][r][chain] = _mm512_dpbf16_ps(acc[m][r][chain], wk[r], xk);
    }
  };
  int64_t k = 0;
  for (; k + 64 <= count; k += 64) {
    ask(k);
    step(k, 0, ~__mmask32{0});
    step(k + 32, 1, ~__mmask32{0});
  }
  const auto mask_of = [](int64_t n) { return n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1; };
  if (k < count) step(k, 0, mask_of(count - k));
  if (k + 32 < count) step(k + 32, 1, mask_of(count - k - 32));
  MLX_DELTA_UNROLL
  for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
  for (int r = 0; r < 2 * NR; ++r) _mm512_store_ps(acc_at + (m * 2 * kUnitRows + r) * 16, acc[m][r / 2][r % 2]);
}

// Calls f(m, MR) for tiles of MR rows of x: threes, and twos and ones where they do not come out even.
template <typename F>
inline void for_tiles_of_few(int64_t M, const F& f) {
  int64_t m = 0;
  for (; m + 3 <= M && M - m != 4; m += 3) f(m, std::integral_constant<int, 3>{});
  for (; m + 2 <= M; m += 2) f(m, std::integral_constant<int, 2>{});
  if (m < M) f(m, std::integral_constant<int, 1>{});
}

// The rows of x as a call's tiles take them: [blocks, M, block] columns. A few rows are one block, as they are; more
// are copied, since rows a power of two apart fall into the same few sets of L1.
struct PairX {
  const bf16* data;
  int64_t M, block;
};
constexpr int64_t kPairBlock = 512;
inline bool one_block(int64_t M, int64_t K) { return M == 1 || M * K <= 12288; }  // 24 KB

// out[m * kUnitRows + r] = row n + r of the matrix times row m of x, for r < count <= kUnitRows; `next`, a row of as
// many columns, is read after them. Rows of x that are one block stay in L1, and the weights pass by as a stream of
// memory, one row after the other, as it is read fastest. More take tiles of 3 x 4 by blocks of columns.
inline void multiply_bf16(const MatrixView& matrix, int64_t n, int64_t count, const bf16* next, const PairX& x,
                          float* out) {
  const int64_t K = matrix.cols, M = x.M;
  const bf16* w = static_cast<const bf16*>(matrix.data) + n * K;
  const Ahead ahead = stream_ahead();
  float* acc = scratch_of<float>(4, M * kUnitRows * 32);
  std::memset(acc, 0, size_t(M * kUnitRows * 32) * sizeof(float));
  const auto acc_at = [&](int64_t m, int64_t r) { return acc + (m * kUnitRows + r) * 32; };
  const int64_t tiles = (M + 2) / 3, lines = (8 + tiles - 1) / tiles;  // asked for beside 64 columns of each tile
  const bf16* xk = x.data;
  for (int64_t k = 0; k < K; k += x.block, xk += M * x.block) {
    const int64_t columns = least(x.block, K - k);
    int64_t r = 0;
    if (x.block < K)
      for (; r + 4 <= count; r += 4) {
        // All tiles of these rows ask for a part of what follows: asked for at once, it would fill the queues.
        const bf16* asked = next + k * kUnitRows + r * columns;
        for_tiles_of_few(M, [&](int64_t m, auto rows_of_x) {
          const auto ask = [&](int64_t) __attribute__((always_inline)) {
            for (int64_t i = 0; i < lines; ++i) prefetch(asked + 32 * i);
            asked += 32 * lines;
          };
          multiply_pairs<decltype(rows_of_x)::value, 4>(w + r * K + k, K, xk + m * x.block, x.block, columns, ask,
                                                        acc_at(m, r));
        });
      }
    for (; r < count; ++r)
      for_tiles_of_few(M, [&](int64_t m, auto rows_of_x) {
        const bf16* row = w + r * K + k;
        const auto ask = [&](int64_t c) __attribute__((always_inline)) {
          if (m > 0) return;
          prefetch_stream(row + c, ahead);
          prefetch_stream(row + c + 32, ahead);
        };
        multiply_pairs<decltype(rows_of_x)::value, 1>(row, K, xk + m * x.block, x.block, columns, ask, acc_at(m, r));
      });
  }
  for (int64_t m = 0; m < M; ++m) {
    __m512 unit[kUnitRows];
    for (int64_t r = 0; r < kUnitRows; ++r)
      unit[r] = _mm512_add_ps(_mm512_load_ps(acc_at(m, r)), _mm512_load_ps(acc_at(m, r) + 16));
    _mm512_mask_storeu_ps(out + m * kUnitRows, __mmask16((1u << count) - 1), sums_of_rows(unit));
  }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
