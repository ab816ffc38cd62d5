// Rows of keys or values in 8 bits (kv_layout.h): made of floats, and read as floats.
#pragma once

#include "cpu/simd/math.h"
#include "kv_layout.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline float to_float(int8_t x) { return x; }
inline F load(const int8_t* p) {
#if defined(__AVX512F__)
  return F(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#elif defined(__AVX2__)
  return F(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#else
  typedef int8_t B __attribute__((vector_size(W)));
  B bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return __builtin_convertvector(__builtin_convertvector(bytes, I), F);
#endif
}

inline constexpr float kLeastScale = 0x1p-100f;  // its inverse is finite: values below are as good as 0

inline float kv_scale(const int8_t* row, int64_t D, int64_t group) {
  bf16 scale;
  std::memcpy(&scale, row + D + 2 * group, sizeof(scale));  // D need not be even
  return to_float(scale);
}

// Rounds to nearest even. Where a value is not finite its group's scale is NaN, and so is all that is read of it.
template <typename T>
inline void quantize_kv_row(const T* x, int64_t D, int8_t* row) {
  for (int64_t first = 0; first < D; first += kKvGroup) {
    const int64_t last = least<int64_t>(D, first + kKvGroup);
    float largest = 0.0f, bad = 0.0f;
    for (int64_t i = first; i < last; ++i) {
      const float value = to_float(x[i]);
      largest = most(largest, fabsf(value));
      bad += value * 0.0f;
    }
    const bf16 stored = bad == 0.0f ? from_float<bf16>(largest / 127.0f) : bf16{0x7fc0};  // one NaN, whatever came
    const float scale = to_float(stored), inverse = scale >= kLeastScale ? 1.0f / scale : 0.0f;
    // rintf of a product that was rounded: nothing that an instruction set with fused additions could do otherwise.
    for (int64_t i = first; i < last; ++i) row[i] = inverse > 0.0f ? int8_t(rintf(to_float(x[i]) * inverse)) : 0;
    std::memcpy(row + D + 2 * (first / kKvGroup), &stored, sizeof(stored));
  }
}

// `count` rows, one behind the other, as floats [count, D].
inline void load_kv_rows(const int8_t* rows, int64_t count, int64_t D, float* to) {
  for (int64_t r = 0; r < count; ++r, rows += kv_row_bytes(D), to += D)
    for (int64_t first = 0; first < D; first += kKvGroup) {
      const int64_t last = least<int64_t>(D, first + kKvGroup);
      const float scale = kv_scale(rows, D, first / kKvGroup);
      int64_t i = first;
      for (; i + W <= last; i += W) store(load(rows + i) * scale, to + i);
      for (; i < last; ++i) to[i] = to_float(rows[i]) * scale;
    }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
