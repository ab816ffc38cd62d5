// int16_fields.h with NEON's dot products: a byte a weight, and x16 = 256 hi + lo as two signed bytes. SDOT is 16
// products an instruction, for two bytes a value still twice those of SMLAL, of which Arm's own cores run half as many.
//
// A chunk of x is its 64 high bytes, then its 64 low ones. Weights of 8 bits less 128 are signed bytes.
// |hi| <= 127: a lane of 32 bits, 16 products, is below (256 * 127 + 128) * 16 * 128 < 2^27.
#pragma once

#include "cpu/qmm/int16_neon.h"

#if defined(MLX_DELTA_DOTPROD)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline void put(int16_t* x, int place, int32_t value) {
  int8_t* bytes = reinterpret_cast<int8_t*>(x);
  const int32_t high = (value + 128) >> 8;
  bytes[place] = int8_t(high);
  bytes[kChunk + place] = int8_t(value - 256 * high);
}

template <int bits>
struct Fields : Lanes<bits> {
  using In = Lanes<bits>;
  using Chunk = int8x16_t[4];  // vector j has the places from 16 j on
  static constexpr int offset = bits == 8 ? 128 : 0;
  UnalignedLanes<bits> unaligned_lanes;
  uint8x16_t mask = held(vdupq_n_u8(bits == 8 ? 128 : (1 << bits) - 1));

  __attribute__((always_inline)) void operator()(const uint8_t* p, int8x16_t* f) const {
    const auto take = [&](int j, uint8x16_t x) { f[j] = vreinterpretq_s8_u8(x); };
    const auto masked = [&](uint8x16_t x) { return vandq_u8(x, mask); };
    if constexpr (bits == 8) {
      MLX_DELTA_UNROLL
      for (int j = 0; j < 4; ++j) take(j, veorq_u8(vld1q_u8(p + 16 * j), mask));
    } else if constexpr (bits == 4) {
      MLX_DELTA_UNROLL
      for (int v = 0; v < 2; ++v) {
        const uint8x16_t x = vld1q_u8(p + 16 * v);
        take(2 * v, masked(x));
        take(2 * v + 1, vshrq_n_u8(x, 4));
      }
    } else if constexpr (bits == 2) {
      const uint8x16_t x = vld1q_u8(p);
      take(0, masked(x));
      take(1, masked(vshrq_n_u8(x, 2)));
      take(2, masked(vshrq_n_u8(x, 4)));
      take(3, vshrq_n_u8(x, 6));
    } else {
      // Of each lane the byte from bit `low` on, and the upper one, at whose top the last field ends.
      MLX_DELTA_UNROLL
      for (int v = 0; v < (In::quad ? 1 : 2); ++v) {
        uint16x8_t x[2];
        unaligned_lanes(p + v * 4 * bits, x);
        const uint8x16_t lower = vshrn_high_n_u16(vshrn_n_u16(x[0], In::low), x[1], In::low);
        const uint8x16_t upper = vuzp2q_u8(vreinterpretq_u8_u16(x[0]), vreinterpretq_u8_u16(x[1]));
        take(2 * v, masked(lower));
        if constexpr (In::quad) {
          take(1, masked(vshrq_n_u8(lower, bits)));
          take(2, masked(vshrq_n_u8(upper, 8 - 2 * bits)));
        }
        take(In::quad ? 3 : 2 * v + 1, vshrq_n_u8(upper, 8 - bits));
      }
    }
  }

  static __attribute__((always_inline)) I dot(const int8x16_t* f, const int16_t* x) {
    const int8_t* bytes = reinterpret_cast<const int8_t*>(x);
    int32x4_t high = vdupq_n_s32(0), low = vdupq_n_s32(0);
    MLX_DELTA_UNROLL
    for (int j = 0; j < 4; ++j) {
      high = vdotq_s32(high, f[j], vld1q_s8(bytes + 16 * j));
      low = vdotq_s32(low, f[j], vld1q_s8(bytes + kChunk + 16 * j));
    }
    return I(vaddq_s32(vshlq_n_s32(high, 8), low));
  }
};

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
