// qmm for the many rows of a prompt with AVX-512: 16 weight rows lie side by side in a vector, the rows of x are
// broadcast against them, and every sum stays in a register for a whole block of columns.
//
// A unit is 48 weight rows: three strips of 16. A block of their columns is unpacked once for all rows of x into
// [columns / 4][16 rows][4 columns] bytes (bfloat16: [columns / 2][16][2]), 24 KB that stay in L1 while x passes by.
// tiled_avx512.h has the products of packed weights, tiled_bf16.h those of bfloat16.
#pragma once

#if defined(__AVX512VNNI__)

#include "cpu/qmm/tile_avx512.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int kStrips = 3;
inline constexpr int kTiledRows = 16 * kStrips;  // weight rows of a unit
inline constexpr int kTiledX = 4;                // rows of x of a register tile

// out[i] = lane i of each of the 16 vectors of `rows`
inline void transpose_lanes(const __m512i* rows, __m512i* out) {
  __m512i a[16], b[16];
  MLX_DELTA_UNROLL
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  MLX_DELTA_UNROLL
  for (int i = 0; i < 16; i += 4) MLX_DELTA_UNROLL
  for (int j = 0; j < 2; ++j) {
    b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
    b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
  }
  // b[4 q + j]: of rows 4 q .. 4 q + 3, lanes j, 4 + j, 8 + j, 12 + j
  MLX_DELTA_UNROLL
  for (int j = 0; j < 4; ++j) {
    const __m512i low01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x44),
                  high01 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xee);
    const __m512i low23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x44),
                  high23 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xee);
    out[j] = _mm512_shuffle_i32x4(low01, low23, 0x88);
    out[4 + j] = _mm512_shuffle_i32x4(low01, low23, 0xdd);
    out[8 + j] = _mm512_shuffle_i32x4(high01, high23, 0x88);
    out[12 + j] = _mm512_shuffle_i32x4(high01, high23, 0xdd);
  }
}

// Calls f(m, MR) for tiles of MR = 4 rows, then the rest.
template <typename F>
inline void for_tiles_of_x(int64_t M, const F& f) {
  int64_t m = 0;
  for (; m + kTiledX <= M; m += kTiledX) f(m, std::integral_constant<int, kTiledX>{});
  for (; m < M; ++m) f(m, std::integral_constant<int, 1>{});
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
