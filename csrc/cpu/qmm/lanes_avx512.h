// Sums across the lanes of AVX-512 vectors.
#pragma once

#if defined(__AVX512F__)

#include "cpu/simd/vector.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// One vector of the sums of lanes 2 i and 2 i + 1 of two vectors: in each quarter two of a, then two of b; and of their
// neighbouring quarters: two of a, then two of b.
template <typename V>
inline V add_pairs(V a, V b) {
  const __m512 x = __m512(a), y = __m512(b);
  return V(_mm512_shuffle_ps(x, y, 0x88)) + V(_mm512_shuffle_ps(x, y, 0xdd));
}
template <typename V>
inline V add_quarters(V a, V b) {
  const __m512 x = __m512(a), y = __m512(b);
  return V(_mm512_shuffle_f32x4(x, y, 0x88)) + V(_mm512_shuffle_f32x4(x, y, 0xdd));
}

// The sums over lanes of 16 vectors, that of rows[r] in lane r: 45 operations, where one by one they take 16 each.
inline __m512 sums_of_rows(const __m512 (&rows)[16]) {
  __m512 pairs[8], fours[4];
  MLX_DELTA_UNROLL
  for (int i = 0; i < 8; ++i)
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]),
                             _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]));
  const auto unpacked = [](__m512 a, __m512 b, auto high) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
  };
  MLX_DELTA_UNROLL
  for (int i = 0; i < 4; ++i)
    fours[i] = _mm512_add_ps(unpacked(pairs[2 * i], pairs[2 * i + 1], std::false_type{}),
                             unpacked(pairs[2 * i], pairs[2 * i + 1], std::true_type{}));
  // A quarter of each of fours now holds a partial sum of four rows.
  return add_quarters(add_quarters(fours[0], fours[1]), add_quarters(fours[2], fours[3]));
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
