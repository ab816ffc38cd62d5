// x in fixed point and its products with packed weights, which qmm_avx512.cpp has. AVX512-BF16 has no instruction for
// them: its build (whose MLX_DELTA_BASE is avx512) takes those of avx512, and so lays x out as that does.
#pragma once

#if defined(__AVX512VNNI__)

#include "cpu/matrix.h"

namespace mlx_delta::cpu::MLX_DELTA_BASE {

// A row's part of x in fixed point, in the order of the weights of a tile.
template <int vectors>
struct alignas(64) XTile {
  int8_t hi[64 * vectors], lo[64 * vectors];
  // For the lanes that weight rows share, of one row of x for those of one (SharedLanes).
  float steps[16];  // of each lane's group
  float sums[16];   // step * sum(x16) of each row's group in its first lane, else 0
};

// x of one call in fixed point, for tiles of one number of vectors and one group size.
struct FixedX {
  const void* data;  // [tiles, M] XTile
  int64_t M, tiles;

  template <int vectors>
  const XTile<vectors>* tile(int64_t m, int64_t t) const {
    return static_cast<const XTile<vectors>*>(data) + t * M + m;
  }
};

// out[unit, m, r]: rows n .. n + count of the matrix times row m of x, by units of kUnitRows; one unit for one row of
// x, else up to kRunRows. `next`, a packed row, is read after them.
void multiply_fixed(const MatrixView& matrix, int64_t n, int64_t count, RowOf next, const FixedX& x, float* out);

// acc[m * kTiledRows + r] += row n + r of the matrix times row m of x, for r < count <= kTiledRows.
void multiply_tiled(const MatrixView& matrix, int64_t n, int64_t count, const FixedX& x, float* acc);

}  // namespace mlx_delta::cpu::MLX_DELTA_BASE

namespace mlx_delta::cpu::MLX_DELTA_ISA {

using namespace MLX_DELTA_BASE;

constexpr int kLeastGroup = 32;

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
