// int16_fields.h with AVX2: weights in place in 16-bit lanes, vpmaddwd.
//
// |x16| <= 32512, and a lane of 32 bits sums 2 products of a field in place, from 5 bits on 4, of two fields: at most
// 2 * (7 << 10) * 32512 < 2^29 (3 bits). Their total, 8 products of a weight, is below 8 * 255 * 32512 < 2^26.
#pragma once

#include "cpu/qmm/int16_fields.h"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline I nearest(F x) { return I(_mm256_cvtps_epi32(__m256(x))); }
inline F floats(I x) { return F(_mm256_cvtepi32_ps(__m256i(x))); }
inline void put(int16_t* x, int place, int32_t value) { x[place] = int16_t(value); }

template <int bits>
struct Fields : Lanes<bits> {
  using In = Lanes<bits>;
  using Chunk = __m256i[4];  // field j of 16 lanes, `shift(j)` bits high or on top
  static constexpr int vectors = In::quad ? 1 : 2;
  const __m256i index = _mm256_load_si256(reinterpret_cast<const __m256i*>(In::table.bytes));
  const __m256i factors = _mm256_load_si256(reinterpret_cast<const __m256i*>(In::table.factors));

  // The lanes of the 64 weights at p, before their fields come apart.
  __attribute__((always_inline)) void lanes(const uint8_t* p, __m256i* x) const {
    MLX_DELTA_UNROLL
    for (int v = 0; v < vectors; ++v) x[v] = vector_at(p + v * 4 * bits);
  }

  __attribute__((always_inline)) void operator()(const uint8_t* p, __m256i* f) const {
    __m256i x[vectors];
    lanes(p, x);
    MLX_DELTA_UNROLL
    for (int j = 0; j < 4; ++j)
      f[j] = In::on_top(j) ? _mm256_srli_epi16(of(x, j), In::shift(j)) : _mm256_and_si256(of(x, j), field(j));
  }

  // All four fields at bit 0. `mask`, of one there (`low_field`), is the caller's, to keep in a register.
  static constexpr int16_t low_field = (1 << bits) - 1;
  static __attribute__((always_inline)) void apart(const __m256i* x, __m256i mask, __m256i* f) {
    MLX_DELTA_UNROLL
    for (int j = 0; j < 4; ++j) {
      f[j] = In::shift(j) > 0 ? _mm256_srli_epi16(of(x, j), In::shift(j)) : of(x, j);
      if (!In::on_top(j)) f[j] = _mm256_and_si256(f[j], mask);
    }
  }

  static __attribute__((always_inline)) I dot(const __m256i* f, const int16_t* x) {
    __m256i sums[4];
    MLX_DELTA_UNROLL
    for (int j = 0; j < 4; ++j)
      sums[j] = _mm256_madd_epi16(f[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(x + 16 * j)));
    const auto down = [](__m256i sum, int j) { return _mm256_srai_epi32(sum, In::shift(j)); };
    if constexpr (In::quad) {
      const __m256i low_pair = _mm256_add_epi32(down(sums[0], 0), down(sums[1], 1));
      return I(_mm256_add_epi32(_mm256_add_epi32(low_pair, down(sums[2], 2)), sums[3]));
    } else {
      const __m256i first = down(_mm256_add_epi32(sums[0], sums[2]), 0);
      return I(_mm256_add_epi32(first, _mm256_add_epi32(sums[1], sums[3])));
    }
  }

 private:
  static __m256i of(const __m256i* x, int j) { return x[In::quad ? 0 : j / 2]; }
  static __m256i field(int j) { return _mm256_set1_epi16(int16_t(In::mask(j))); }

  __attribute__((always_inline)) __m256i vector_at(const uint8_t* p) const {
    const auto half = [](const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); };
    if constexpr (bits == 2) {
      return _mm256_cvtepu8_epi16(half(p));
    } else if constexpr (!In::unaligned) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    } else {
      const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(half(p)), half(p + In::second_load), 1);
      return _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, index), factors);
    }
  }
};

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
