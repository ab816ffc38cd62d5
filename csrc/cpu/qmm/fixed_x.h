// The rows of x in fixed point, laid out for the tiles of avx512.h.
#pragma once

#if defined(__AVX512VNNI__)

#include "cpu/qmm/packed_avx512.h"
#include "cpu/qmm/tile_avx512.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// A layout of x: one for each group size and number of vectors a tile that the call's segments have.
constexpr int kLayouts = 6;
inline int layout_of(const MatrixView& m) {
  return (m.bits <= 4 ? 0 : 3) + (m.group_size == 32 ? 0 : m.group_size == 64 ? 1 : 2);
}

// Row m of M rows of x (times norm, if given) as fixed point, into [tiles, M] tiles; `x` is that row.
// step = largest / 32512, so that hi stays within a signed byte. A group that holds an infinity or a NaN gets a NaN
// step: so does its part of every result.
template <int vectors, int group_size, typename T>
void fix_row(const T* x, const float* norm, int64_t K, int64_t M, int64_t m, void* data) {
  constexpr int weights = 64 * vectors, groups = weights / group_size, parts = group_size / 16;
  constexpr int pieces = pieces_of_lane(group_size), piece = 8 * vectors / pieces;
  constexpr SharedLanes<vectors, group_size> lanes;
  const __m512i order = piece == 16 ? _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)
                                    : _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const int64_t tiles = (K + weights - 1) / weights;
  XTile<vectors>* to = static_cast<XTile<vectors>*>(data) + m;
  if (K % weights != 0) to[(tiles - 1) * M] = {};
  for (int64_t g = 0; g < K / group_size; ++g) {
    __m512 h[parts];
    __m512i largest_bits = _mm512_setzero_si512();  // as integers: a NaN is larger than infinity
    for (int i = 0; i < parts; ++i) {
      const int64_t k = g * group_size + 16 * i;
      h[i] = __m512(load(x + k));
      if (norm) h[i] = _mm512_mul_ps(h[i], _mm512_loadu_ps(norm + k));
      largest_bits = _mm512_max_epu32(largest_bits, _mm512_castps_si512(_mm512_abs_ps(h[i])));
    }
    const uint32_t bits = _mm512_reduce_max_epu32(largest_bits);
    const float largest = bits_as<float>(bits);
    const bool finite = bits < 0x7f800000, zero = largest < 0x1p-100f;
    const float step = !finite ? bits_as<float>(0x7fc00000u) : zero ? 0.0f : largest * (1.0f / 32512);
    const __m512 inverse = _mm512_set1_ps(!finite || zero ? 0.0f : 32512 / largest);

    XTile<vectors>& tile = to[g / groups * M];
    const int in_tile = int(g % groups);
    __m512i total = _mm512_setzero_si512();
    for (int i = 0; i < parts; ++i) {
      const __m512i q = _mm512_permutexvar_epi32(order, _mm512_cvtps_epi32(_mm512_mul_ps(h[i], inverse)));
      const __m512i hi = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
      total = _mm512_add_epi32(total, q);
      alignas(16) int8_t bytes[2][16];
      _mm_store_si128(reinterpret_cast<__m128i*>(bytes[0]), _mm512_cvtepi32_epi8(hi));
      _mm_store_si128(reinterpret_cast<__m128i*>(bytes[1]),
                      _mm512_cvtepi32_epi8(_mm512_sub_epi32(q, _mm512_slli_epi32(hi, 8))));
      // 16 values are one piece, in two vectors, or two pieces.
      const Place p = place<pieces>((in_tile * group_size + 16 * i) / piece);
      for (int o = 0; o < 2; ++o) {
        const int at = (p.vector * (piece / 8) + o) * 64 + p.lane * 8;
        std::memcpy(tile.hi + at, bytes[0] + 8 * o, 8);
        std::memcpy(tile.lo + at, bytes[1] + 8 * o, 8);
      }
    }
    const float sum = step * float(_mm512_reduce_add_epi32(total));
    for (int i = 0; i < 16; ++i) {
      const int lane = M == 1 ? lanes.of_one[i] : i;
      if (lanes.group[lane] != in_tile) continue;
      tile.steps[i] = step;
      tile.sums[i] = lanes.first[lane] ? sum : 0;
    }
  }
}

template <typename T>
void fix_row(int layout, const T* x, const float* norm, int64_t K, int64_t M, int64_t m, void* data) {
  switch (layout) {
    case 0:
      return fix_row<4, 32>(x, norm, K, M, m, data);
    case 1:
      return fix_row<8, 64>(x, norm, K, M, m, data);
    case 2:
      return fix_row<8, 128>(x, norm, K, M, m, data);
    case 3:
      return fix_row<2, 32>(x, norm, K, M, m, data);
    case 4:
      return fix_row<4, 64>(x, norm, K, M, m, data);
    default:
      return fix_row<4, 128>(x, norm, K, M, m, data);
  }
}

// What a layout of M rows needs, in bytes, and where its parts are.
struct FixedSpace {
  int64_t tiles, tile_bytes;
  FixedSpace(int layout, int64_t K) {
    const int64_t group_size = int64_t{32} << layout % 3;
    const int64_t weights = (layout < 3 ? 128 : 64) * pieces_of_lane(int(group_size));
    tiles = (K + weights - 1) / weights;
    tile_bytes = 2 * weights + 128;  // an XTile
  }
  int64_t row_bytes() const { return tiles * tile_bytes; }
  FixedX view(char* base, int64_t M) const { return {base, M, tiles}; }
  template <typename T>
  void fix(int layout, const T* x, const float* norm, int64_t K, char* base, int64_t M, int64_t m) const {
    fix_row(layout, x, norm, K, M, m, base);
  }
};

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
