// A prompt's rows (strips_avx512.h) on plain bfloat16 weights.
#pragma once

#include "cpu/qmm/bf16.h"
#include "cpu/qmm/strips_avx512.h"

#if defined(__AVX512BF16__)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int64_t kPairColumns = 256;  // of a block of bfloat16 weights: 24 KB

// acc[m][strip] += a block's columns, in pairs, times MR rows of x.
template <int MR, int NV>
void multiply_pair_tile(const uint32_t* weights, int64_t pairs, const bf16* x, int64_t x_stride, float* acc_at) {
  __m512 acc[MR][NV];
  MLX_DELTA_UNROLL
  for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
  for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_load_ps(acc_at + m * kTiledRows + n * 16);
  for (int64_t k = 0; k < pairs; ++k) {
    __m512i wk[NV];
    MLX_DELTA_UNROLL
    for (int n = 0; n < NV; ++n) wk[n] = held(_mm512_load_si512(weights + n * (kPairColumns / 2 * 16) + k * 16));
    MLX_DELTA_UNROLL
    for (int m = 0; m < MR; ++m) {
      int32_t pair;
      std::memcpy(&pair, x + m * x_stride + 2 * k, 4);
      const __m512i xk = held(_mm512_set1_epi32(pair));
      MLX_DELTA_UNROLL
      for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_dpbf16_ps(acc[m][n], (__m512bh)wk[n], (__m512bh)xk);
    }
  }
  MLX_DELTA_UNROLL
  for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
  for (int n = 0; n < NV; ++n) _mm512_store_ps(acc_at + m * kTiledRows + n * 16, acc[m][n]);
}

// The same for plain bfloat16 weights and x as it is, [M, K], K even.
inline void multiply_tiled_bf16(const MatrixView& matrix, int64_t n, int64_t count, const bf16* x, int64_t M,
                                float* acc) {
  const int64_t K = matrix.cols;
  const bf16* w = static_cast<const bf16*>(matrix.data) + n * K;
  uint32_t* block = scratch_of<uint32_t>(3, kPairColumns / 2 * kTiledRows);
  const int strips = int((count + 15) / 16);
  for (int64_t from = 0; from < K; from += kPairColumns) {
    const int64_t columns = least(kPairColumns, K - from);
    for (int strip = 0; strip < strips; ++strip)
      for (int64_t k = 0; k < columns; k += 32) {
        const int64_t left = columns - k;
        const __mmask32 mask = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
        __m512i rows[16], pairs[16];
        for (int r = 0; r < 16; ++r) {
          const bf16* row = w + least<int64_t>(16 * strip + r, count - 1) * K + from + k;
          rows[r] = _mm512_maskz_loadu_epi16(mask, row);
          prefetch(row + kPairColumns);
        }
        transpose_lanes(rows, pairs);
        for (int i = 0; i < 16; ++i)
          _mm512_store_si512(block + strip * (kPairColumns / 2 * 16) + (k / 2 + i) * 16, pairs[i]);
      }
    for_tiles_of_x(M, [&](int64_t m, auto rows_of_x) {
      constexpr int MR = decltype(rows_of_x)::value;
      const bf16* xm = x + m * K + from;
      if (strips == 3) return multiply_pair_tile<MR, 3>(block, columns / 2, xm, K, acc + m * kTiledRows);
      if (strips == 2) return multiply_pair_tile<MR, 2>(block, columns / 2, xm, K, acc + m * kTiledRows);
      return multiply_pair_tile<MR, 1>(block, columns / 2, xm, K, acc + m * kTiledRows);
    });
  }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
