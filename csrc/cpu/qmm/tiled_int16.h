// A unit of a prompt's rows on packed weights: its columns by blocks, each unpacked once for all rows of x. What a
// block looks like, and how a tile of it multiplies, is the processor's: tiled_avx2.h, tiled_dotprod.h.
#pragma once

#include "cpu/qmm/tiled_avx2.h"
#include "cpu/qmm/tiled_dotprod.h"

#if (defined(__AVX2__) && !defined(__AVX512F__)) || defined(MLX_DELTA_DOTPROD)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

template <int bits, int group_size>
void multiply_unit(const MatrixView& matrix, int64_t n, int64_t count, const FixedX& x, float* acc) {
  constexpr int64_t chunks = kBlockColumns / kChunk;
  TiledBlock block;
  const int64_t all = matrix.cols / kChunk;
  for (int64_t from = 0; from < all; from += chunks) {
    const int64_t to = least(from + chunks, all);
    unpack_block<bits, group_size>(matrix, n, count, from, to, block);
    int64_t m = 0;
    for (; m + 4 <= x.M; m += 4) multiply_tile<group_size, 4>(block, from, to, x, m, acc + m * kTiledRows);
    for (; m < x.M; ++m) multiply_tile<group_size, 1>(block, from, to, x, m, acc + m * kTiledRows);
  }
}

// acc[m * kTiledRows + r] += row n + r of the matrix times row m of x, for r < count <= kTiledRows.
inline void multiply_tiled(const MatrixView& matrix, int64_t n, int64_t count, const FixedX& x, float* acc) {
  for_width(matrix, [&](auto bits, auto group_size) {
    if constexpr (decltype(group_size)::value >= kLeastGroup)
      multiply_unit<decltype(bits)::value, decltype(group_size)::value>(matrix, n, count, x, acc);
  });
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
