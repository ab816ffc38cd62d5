// The vocabulary of the CPU kernels: a vector of W floats, its loads and stores for every element type, and the few
// things that C++ operators on it do not say. Compiled once per instruction set, into its namespace.
//
// GCC's and Clang's vector extension gives + - * / and fused multiply-add (-ffp-contract=fast) on any target, so only
// what needs a particular instruction is written per instruction set.
#pragma once

#include <cstring>
#include <type_traits>

#include "cpu/runtime/ahead.h"
#include "cpu/types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(MLX_DELTA_ISA_NEON)
#include <arm_neon.h>
#endif

// On a loop over an array of vectors whose length is a constant: only when it is unrolled early do GCC and Clang keep
// the array in registers (GCC otherwise also stores each element, which halves the speed of a tile).
#define MLX_DELTA_UNROLL _Pragma("GCC unroll 16")

namespace mlx_delta::cpu::MLX_DELTA_ISA {

#if defined(__AVX512F__)
inline constexpr int W = 16;
#elif defined(__AVX2__)
inline constexpr int W = 8;
#else
inline constexpr int W = 4;
#endif

typedef float F __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t H __attribute__((vector_size(2 * W)));

// std::bit_cast, min and max are templates of the standard library: kept out, see kernels.h.
template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
template <typename T>
inline T least(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T most(T a, T b) {
  return a < b ? b : a;
}

inline F splat(float x) { return x - F{}; }  // x + 0 would be an addition: it makes -0 a 0
inline F select(I mask, F yes, F no) { return F((mask & I(yes)) | (~mask & I(no))); }
inline F vmax(F a, F b) { return select(I(a > b), a, b); }

// ---- element types: a float on load, one rounding to nearest even on store

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }
inline float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bits_as<float>(sign | 0x7f800000 | (magnitude << 13));  // inf, nan
  // Scaling by 2^112 moves the exponent bias from 15 to 127 and makes subnormals normal.
  return bits_as<float>(sign | bits_as<uint32_t>(bits_as<float>(magnitude << 13) * 0x1p112f));
}

template <typename T>
inline T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else if constexpr (std::is_same_v<T, bf16>) {
    const uint32_t u = bits_as<uint32_t>(x);
    if ((u & 0x7fffffff) > 0x7f800000) return {uint16_t((u >> 16) | 0x40)};  // keep a nan a nan
    return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
  } else {
    const uint32_t u = bits_as<uint32_t>(x);
    const uint16_t sign = uint16_t((u >> 16) & 0x8000);
    const uint32_t magnitude = u & 0x7fffffff;
    if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
    if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // rounds beyond 65504
    if (magnitude < 0x38800000) {
      // Subnormal: the spacing of floats at 0.5 is 2^-24, float16's smallest, so the addition itself rounds to even.
      const float aligned = bits_as<float>(magnitude) + 0.5f;
      return {uint16_t(sign | (bits_as<uint32_t>(aligned) - 0x3f000000))};
    }
    return {uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13))};
  }
}

inline F load(const float* p) {
  F x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
inline void store(F x, float* p) { std::memcpy(p, &x, sizeof(x)); }

inline F load(const bf16* p) {
  H half;
  std::memcpy(&half, p, sizeof(half));
  return F(__builtin_convertvector(half, U) << 16);
}
inline void store(F x, bf16* p) {
  const U u = U(x);
  const U nan = U((u & 0x7fffffff) > 0x7f800000);
  const U rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const H half = __builtin_convertvector((nan & ((u >> 16) | 0x40)) | (~nan & rounded), H);
  std::memcpy(p, &half, sizeof(half));
}

inline F load(const f16* p) {
#if defined(__AVX512F__)
  return F(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
  return F(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(MLX_DELTA_ISA_NEON)
  return F(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p)))));
#else
  F x;
  for (int i = 0; i < W; ++i) x[i] = to_float(p[i]);
  return x;
#endif
}
inline void store(F x, f16* p) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(__m512(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(__m256(x), _MM_FROUND_TO_NEAREST_INT));
#elif defined(MLX_DELTA_ISA_NEON)
  vst1_u16(reinterpret_cast<uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(float32x4_t(x))));
#else
  for (int i = 0; i < W; ++i) p[i] = from_float<f16>(x[i]);
#endif
}

// The first `count` < W elements; the rest 0.
template <typename T>
inline F load_part(const T* p, int64_t count) {
  F x{};
  for (int64_t i = 0; i < count; ++i) x[i] = to_float(p[i]);
  return x;
}
template <typename T>
inline void store_part(F x, T* p, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = from_float<T>(x[i]);
}

// The sum of the lanes, always in the same order.
inline float sum(F x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(__m512(x));
#elif defined(__AVX2__)
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(__m256(x)), _mm256_extractf128_ps(__m256(x), 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#elif defined(MLX_DELTA_ISA_NEON)
  return vaddvq_f32(float32x4_t(x));
#else
  return (x[0] + x[2]) + (x[1] + x[3]);
#endif
}
// The sums of four vectors' lanes: a tree over the lanes whose order is the same for all four.
inline void sum4(const F x[4], float* out) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const auto pairs = [](F a, F b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(__m512(a), __m512(b)), _mm512_unpackhi_ps(__m512(a), __m512(b)));
  };
  const __m512 ab = pairs(x[0], x[1]), cd = pairs(x[2], x[3]);
  const __m512 wide = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(wide), _mm512_extractf32x8_ps(wide, 1));
#else
  const auto pairs = [](F a, F b) {
    return _mm256_add_ps(_mm256_unpacklo_ps(__m256(a), __m256(b)), _mm256_unpackhi_ps(__m256(a), __m256(b)));
  };
  const __m256 ab = pairs(x[0], x[1]), cd = pairs(x[2], x[3]);
  const __m256 half = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
#endif
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(MLX_DELTA_ISA_NEON)
  const auto pairs = [](F a, F b) { return vpaddq_f32(float32x4_t(a), float32x4_t(b)); };
  vst1q_f32(out, vpaddq_f32(pairs(x[0], x[1]), pairs(x[2], x[3])));
#else
  for (int i = 0; i < 4; ++i) out[i] = sum(x[i]);
#endif
}
// Whether a comparison is true in any lane.
inline bool any(I mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(__m512i(mask), __m512i(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256(__m256i(mask), __m256i(mask)) == 0;
#elif defined(MLX_DELTA_ISA_NEON)
  return vmaxvq_u32(uint32x4_t(mask)) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}
inline float max_lane(F x) {
  float result = x[0];
  for (int i = 1; i < W; ++i) result = most(result, x[i]);
  return result;
}

// Asks for p, and for what is ahead of p; never faults. Always inlined: GCC 12 takes a function that only prefetches
// for one without effect, and drops the call.
__attribute__((always_inline)) inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
template <typename T>
__attribute__((always_inline)) inline void prefetch_values(const T* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) prefetch(p + i);
}
__attribute__((always_inline)) inline void prefetch_stream(const void* p, const Ahead& ahead) {
  __builtin_prefetch(static_cast<const char*>(p) + ahead.near, 0, 3);
  __builtin_prefetch(static_cast<const char*>(p) + ahead.far, 0, 2);
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

// The body of a kernel's entry: picks the element type of the activations.
#define MLX_DELTA_DISPATCH(type, kernel, args) \
  switch (type) {                              \
    case DType::f32:                           \
      return kernel<float>(args);              \
    case DType::f16:                           \
      return kernel<f16>(args);                \
    case DType::bf16:                          \
      return kernel<bf16>(args);               \
  }
