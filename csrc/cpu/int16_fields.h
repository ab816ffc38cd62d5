// The vectors of qmm_int16.h: how 64 packed weights become 16-bit lanes and meet 64 values of x, with AVX2 and with
// NEON.
//
// FieldOrder says which weight is in which lane, for both. Fields<bits> is an instruction set's:
//   Chunk                     vectors of 64 fields, those of field j before those of field j + 1
//   operator()(p, f)          unpacks the 64 weights at p; nothing beyond their bytes is read
//   aligned(f, j)             field j at bit 0
//   dot(f, x)                 sums of weights times x, exact, in W 32-bit lanes whose total is the product
// and nearest(F) is the nearest integers, ties to even, floats(I) the floats of integers.
#pragma once

#include "cpu/simd.h"

#if (defined(__AVX2__) && !defined(__AVX512F__)) || defined(MLX_DELTA_ISA_NEON)
#define MLX_DELTA_INT16

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int kChunk = 64;

// 64 weights are 4 fields in each of 16 lanes of 16 bits: up to 4 bits, field j of lane i is weight 4 i + j; from 5
// bits on, field 2 v + j is weight 32 v + 2 i + j.
//
// |x16| <= 32512, and a lane of 32 bits sums at most 4 products of a field in place (AVX2 2; from 5 bits on 8, of two
// fields): the largest is 4 * (7 << 10) * 32512 < 2^30 at 3 bits, the rest below 2^29, and without the shift the 16
// products of a lane of the total stay below 16 * 255 * 32512 < 2^27.
template <int bits>
struct FieldOrder {
  static constexpr bool quads = bits <= 4;
  static constexpr int lane_bits = (quads ? 4 : 2) * bits;  // of a 16-bit lane that are used
  static constexpr bool unaligned = bits == 3 || bits == 5 || bits == 6;
  static constexpr int low = unaligned ? 16 - lane_bits : 0;  // the bit at which they start, when aligned
  static constexpr int shift(int j) { return low + (quads ? j : j % 2) * bits; }  // where field j stands
  static constexpr bool on_top(int j) { return j == 3 || (!quads && j == 1); }    // above it is nothing: moved to bit 0
  static constexpr int mask(int j) { return ((1 << bits) - 1) << shift(j); }

  // Unaligned lanes come from two loads of 16 bytes, the second of which ends where the 2 lane_bits bytes of 16 lanes
  // end. A lane takes two bytes of its load, and goes up by `left` bits, or times a factor.
  static constexpr int second_load = 2 * lane_bits - 16;
  struct Table {
    alignas(32) uint8_t bytes[32];
    alignas(32) uint16_t factors[16];
    alignas(16) int16_t left[8];
  };
  static constexpr Table table = [] {
    Table t{};
    for (int lane = 0; lane < 16; ++lane) {
      const int bit = lane % 8 * lane_bits, byte = bit / 8 + (lane < 8 ? 0 : 16 - lane_bits);
      const int left = most(0, low - bit % 8);
      t.bytes[2 * lane] = uint8_t(byte);
      t.bytes[2 * lane + 1] = uint8_t(byte + 1);
      t.factors[lane] = uint16_t(1 << left);
      t.left[lane % 8] = int16_t(left);
    }
    return t;
  }();
};

#if defined(MLX_DELTA_ISA_NEON)

inline I nearest(F x) { return I(vcvtnq_s32_f32(float32x4_t(x))); }
inline F floats(I x) { return F(vcvtq_f32_s32(int32x4_t(x))); }

template <int bits>
struct Fields : FieldOrder<bits> {
  using Order = FieldOrder<bits>;
  using Chunk = int16x8_t[8];
  uint8x16_t index[2];
  int16x8_t left;
  uint16x8_t masks[3];

  Fields() {
    index[0] = vld1q_u8(Order::table.bytes);
    index[1] = vld1q_u8(Order::table.bytes + 16);
    left = vld1q_s16(Order::table.left);
    for (int j = 0; j < 3; ++j) {
      masks[j] = vdupq_n_u16(Order::mask(j));
      asm("" : "+w"(masks[j]));  // or clang, which knows it, makes each AND a copy and a BIC
    }
  }

  __attribute__((always_inline)) void operator()(const uint8_t* p, int16x8_t* f) const {
    MLX_DELTA_UNROLL
    for (int v = 0; v < (Order::quads ? 1 : 2); ++v) {
      uint16x8_t x[2];
      lanes(p + v * 4 * bits, x);
      MLX_DELTA_UNROLL
      for (int half = 0; half < 2; ++half) {
        f[4 * v + half] = masked<0>(x[half]);
        f[4 * v + 2 + half] = masked<1>(x[half]);
        if constexpr (Order::quads) {
          f[4 + half] = masked<2>(x[half]);
          f[6 + half] = masked<3>(x[half]);
        }
      }
    }
  }

  static __attribute__((always_inline)) I dot(const int16x8_t* f, const int16_t* x) {
    constexpr int sums = Order::quads ? 4 : 2;
    int32x4_t s[sums];
    MLX_DELTA_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int16x8_t xi = vld1q_s16(x + 8 * i);
      int32x4_t& to = s[i / 2 % sums];
      to = i < 2 * sums && i % 2 == 0 ? vmull_s16(vget_low_s16(f[i]), vget_low_s16(xi))
                                      : vmlal_s16(to, vget_low_s16(f[i]), vget_low_s16(xi));
      to = vmlal_high_s16(to, f[i], xi);
    }
    int32x4_t total = add_field<0>(s[sums - 1], s[0]);
    if constexpr (Order::quads) total = add_field<2>(add_field<1>(total, s[1]), s[2]);
    return I(total);
  }

 private:
  template <int j>
  __attribute__((always_inline)) int16x8_t masked(uint16x8_t x) const {
    if constexpr (Order::on_top(j))
      return vreinterpretq_s16_u16(vshrq_n_u16(x, Order::shift(j)));
    else
      return vreinterpretq_s16_u16(vandq_u16(x, masks[j]));
  }

  // total + sum / 2^shift of the field
  template <int j>
  static __attribute__((always_inline)) int32x4_t add_field(int32x4_t total, int32x4_t sum) {
    if constexpr (Order::shift(j) == 0)
      return vaddq_s32(total, sum);
    else
      return vsraq_n_s32(total, sum, Order::shift(j));
  }

  // 16 lanes whose fields start at bit `low`.
  __attribute__((always_inline)) void lanes(const uint8_t* p, uint16x8_t* x) const {
    if constexpr (bits == 2) {
      const uint8x16_t bytes = vld1q_u8(p);
      x[0] = vmovl_u8(vget_low_u8(bytes));
      x[1] = vmovl_high_u8(bytes);
    } else if constexpr (!Order::unaligned) {
      x[0] = vreinterpretq_u16_u8(vld1q_u8(p));
      x[1] = vreinterpretq_u16_u8(vld1q_u8(p + 16));
    } else {
      x[0] = vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(p), index[0])), left);
      x[1] = vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(p + Order::second_load), index[1])), left);
    }
  }
};

#else  // AVX2

inline I nearest(F x) { return I(_mm256_cvtps_epi32(__m256(x))); }
inline F floats(I x) { return F(_mm256_cvtepi32_ps(__m256i(x))); }

template <int bits>
struct Fields : FieldOrder<bits> {
  using Order = FieldOrder<bits>;
  using Chunk = __m256i[4];
  const __m256i index = _mm256_load_si256(reinterpret_cast<const __m256i*>(Order::table.bytes));
  const __m256i factors = _mm256_load_si256(reinterpret_cast<const __m256i*>(Order::table.factors));

  __attribute__((always_inline)) void operator()(const uint8_t* p, __m256i* f) const {
    if constexpr (Order::quads) {
      const __m256i x = lanes(p);
      f[0] = _mm256_and_si256(x, field(0));
      f[1] = _mm256_and_si256(x, field(1));
      f[2] = _mm256_and_si256(x, field(2));
      f[3] = _mm256_srli_epi16(x, Order::shift(3));
    } else {
      MLX_DELTA_UNROLL
      for (int v = 0; v < 2; ++v) {
        const __m256i x = lanes(p + v * 4 * bits);
        f[2 * v] = _mm256_and_si256(x, field(0));
        f[2 * v + 1] = _mm256_srli_epi16(x, Order::shift(1));
      }
    }
  }

  static __m256i aligned(const __m256i* f, int j) {
    return Order::on_top(j) ? f[j] : _mm256_srli_epi16(f[j], Order::shift(j));
  }

  static __attribute__((always_inline)) I dot(const __m256i* f, const int16_t* x) {
    __m256i sums[4];
    MLX_DELTA_UNROLL
    for (int j = 0; j < 4; ++j)
      sums[j] = _mm256_madd_epi16(f[j], _mm256_load_si256(reinterpret_cast<const __m256i*>(x + 16 * j)));
    const auto down = [](__m256i sum, int j) { return _mm256_srai_epi32(sum, Order::shift(j)); };
    if constexpr (Order::quads) {
      const __m256i low_pair = _mm256_add_epi32(down(sums[0], 0), down(sums[1], 1));
      return I(_mm256_add_epi32(_mm256_add_epi32(low_pair, down(sums[2], 2)), sums[3]));
    } else {
      const __m256i first = down(_mm256_add_epi32(sums[0], sums[2]), 0);
      return I(_mm256_add_epi32(first, _mm256_add_epi32(sums[1], sums[3])));
    }
  }

 private:
  static __m256i field(int j) { return _mm256_set1_epi16(int16_t(Order::mask(j))); }

  // 16 lanes whose fields start at bit `low`.
  __attribute__((always_inline)) __m256i lanes(const uint8_t* p) const {
    const auto half = [](const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); };
    if constexpr (bits == 2) {
      return _mm256_cvtepu8_epi16(half(p));
    } else if constexpr (!Order::unaligned) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    } else {
      const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(half(p)), half(p + Order::second_load), 1);
      return _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes, index), factors);
    }
  }
};

#endif

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
