// qmm on plain bfloat16 rows with AVX512-BF16, for x that needs no norm: vdpbf16ps adds 32 products of bfloat16 to 16
// float32 sums. Each product is exact; the sums of one weight row and one row of x are one vector, in the order of the
// columns, whatever the number of rows.
#pragma once

#if defined(__AVX512BF16__)

#include "cpu/qmm_float.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline __m512bh load_pairs(const bf16* p, __mmask32 mask) {
  const __m512i x = _mm512_maskz_loadu_epi16(mask, p);
  return (__m512bh)x;
}

// acc[m, r] += columns [0, count) of NR weight rows times MR rows of x. Each has two vectors, for every other 32
// columns: one chain of products would wait for itself. `stream`: the weights are new to the caches.
template <int MR, int NR>
inline void multiply_pairs(const bf16* w, int64_t w_stride, const bf16* x, int64_t x_stride, int64_t count, bool stream,
                           float* acc_at) {
  __m512 acc[MR][NR][2];
  MLX_DELTA_UNROLL
  for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
  for (int r = 0; r < 2 * NR; ++r) acc[m][r / 2][r % 2] = _mm512_loadu_ps(acc_at + (m * 2 * kUnitRows + r) * 16);
  const auto step = [&](int64_t k, int chain, __mmask32 mask) __attribute__((always_inline)) {
    __m512bh wk[NR];
    MLX_DELTA_UNROLL
    for (int r = 0; r < NR; ++r) {
      wk[r] = load_pairs(w + r * w_stride + k, mask);
      if (stream) prefetch_stream(w + r * w_stride + k);
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
    step(k, 0, ~__mmask32{0});
    step(k + 32, 1, ~__mmask32{0});
  }
  const auto mask_of = [](int64_t n) { return n >= 32 ? ~__mmask32{0} : (__mmask32{1} << n) - 1; };
  if (k < count) step(k, 0, mask_of(count - k));
  if (k + 32 < count) step(k + 32, 1, mask_of(count - k - 32));
  MLX_DELTA_UNROLL
  for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
  for (int r = 0; r < 2 * NR; ++r) _mm512_storeu_ps(acc_at + (m * 2 * kUnitRows + r) * 16, acc[m][r / 2][r % 2]);
}

// out[m * kUnitRows + r] = row n + r of the matrix times row m of x, for r < count <= kUnitRows. One row of x streams
// its weights row by row, as memory is read fastest. More take tiles of 4 x 4 by blocks of 512 columns: the four weight
// rows stay in L1 (1 KB each, in as many ways) while the rows of x come by from L2.
inline void multiply_bf16(const MatrixView& matrix, int64_t n, int64_t count, const bf16* x, int64_t M, float* out) {
  const int64_t K = matrix.cols, block = M == 1 ? K : 512;
  const bf16* w = static_cast<const bf16*>(matrix.data) + n * K;
  float* acc = scratch_of<float>(4, M * kUnitRows * 32);
  std::memset(acc, 0, size_t(M * kUnitRows * 32) * sizeof(float));
  for (int64_t k = 0; k < K; k += block) {
    const int64_t columns = least(block, K - k);
    const auto tile = [&](int64_t m, int64_t r, auto rows_of_x, auto rows_of_w) {
      constexpr int MR = decltype(rows_of_x)::value, NR = decltype(rows_of_w)::value;
      multiply_pairs<MR, NR>(w + r * K + k, K, x + m * K + k, K, columns, m == 0, acc + (m * kUnitRows + r) * 32);
    };
    const std::integral_constant<int, 4> four;
    const std::integral_constant<int, 3> three;
    const std::integral_constant<int, 1> one;
    int64_t r = 0;
    for (; M > 1 && r + 4 <= count; r += 4) {
      int64_t m = 0;
      for (; m + 3 <= M && M - m != 4; m += 3) tile(m, r, three, four);
      for (; m + 2 <= M; m += 2) tile(m, r, std::integral_constant<int, 2>{}, four);
      if (m < M) tile(m, r, one, four);
    }
    for (; r < count; ++r)
      for (int64_t m = 0; m < M; ++m) tile(m, r, one, one);
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t r = 0; r < count; ++r) {
      const float* sums = acc + (m * kUnitRows + r) * 32;
      out[m * kUnitRows + r] = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_loadu_ps(sums), _mm512_loadu_ps(sums + 16)));
    }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
