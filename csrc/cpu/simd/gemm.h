// Products of small float matrices that are in cache: the chunks of gated_delta and the blocks of attention.
#pragma once

#include "cpu/simd/math.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// c[rows, vectors W] += a[rows, depth] b[depth, vectors W]: rows x vectors sums in registers, `vectors` loads of b and
// `rows` broadcasts of a for rows x vectors multiply-adds.
template <int rows, int vectors>
inline void gemm_tile(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth, float* c, int64_t ldc) {
  F sums[rows][vectors];
  MLX_DELTA_UNROLL
  for (int r = 0; r < rows; ++r) MLX_DELTA_UNROLL
  for (int v = 0; v < vectors; ++v) sums[r][v] = load(c + r * ldc + v * W);
  for (int64_t k = 0; k < depth; ++k) {
    F bk[vectors];
    MLX_DELTA_UNROLL
    for (int v = 0; v < vectors; ++v) bk[v] = load(b + k * ldb + v * W);
    MLX_DELTA_UNROLL
    for (int r = 0; r < rows; ++r) {
      const float ak = a[r * lda + k];
      MLX_DELTA_UNROLL
      for (int v = 0; v < vectors; ++v) sums[r][v] += ak * bk[v];
    }
  }
  MLX_DELTA_UNROLL
  for (int r = 0; r < rows; ++r) MLX_DELTA_UNROLL
  for (int v = 0; v < vectors; ++v) store(sums[r][v], c + r * ldc + v * W);
}

// c[m, n] += a[m, depth] b[depth, n], all row by row.
inline void gemm(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m, int64_t n,
                 int64_t depth) {
  constexpr int wide = W == 8 ? 2 : 4;  // 16 registers with AVX2, 32 elsewhere
  int64_t j = 0;
  const auto columns = [&](auto vectors) {
    constexpr int V = decltype(vectors)::value;
    int64_t i = 0;
    for (; i + 4 <= m; i += 4) gemm_tile<4, V>(a + i * lda, lda, b + j, ldb, depth, c + i * ldc + j, ldc);
    for (; i < m; ++i) gemm_tile<1, V>(a + i * lda, lda, b + j, ldb, depth, c + i * ldc + j, ldc);
  };
  for (; j + wide * W <= n; j += wide * W) columns(std::integral_constant<int, wide>{});
  for (; j + W <= n; j += W) columns(std::integral_constant<int, 1>{});
  for (; j < n; ++j)
    for (int64_t i = 0; i < m; ++i)
      for (int64_t k = 0; k < depth; ++k) c[i * ldc + j] += a[i * lda + k] * b[k * ldb + j];
}

// to[cols, rows] = from[rows, cols]^T; blocks of 16 x 16 keep the lines they touch in L1.
inline void transpose(const float* from, int64_t ld_from, int64_t rows, int64_t cols, float* to, int64_t ld_to) {
  for (int64_t i0 = 0; i0 < rows; i0 += 16)
    for (int64_t j0 = 0; j0 < cols; j0 += 16)
      for (int64_t j = j0; j < least(j0 + 16, cols); ++j)
        for (int64_t i = i0; i < least(i0 + 16, rows); ++i) to[j * ld_to + i] = from[i * ld_from + j];
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
