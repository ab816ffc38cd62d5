// int16_fields.h with NEON: weights in place in 16-bit lanes, SMLAL.
//
// |x16| <= 32512, and a lane of 32 bits sums 4 products of a field in place, from 5 bits on 8, of two fields: at most
// 4 * (7 << 10) * 32512 < 2^30 (3 bits). Their total, 16 products of a weight, is below 16 * 255 * 32512 < 2^27.
#pragma once

#include "cpu/qmm/int16_fields.h"

#if defined(MLX_DELTA_ISA_NEON)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline I nearest(F x) { return I(vcvtnq_s32_f32(float32x4_t(x))); }
inline F floats(I x) { return F(vcvtq_f32_s32(int32x4_t(x))); }

// Twice 8 lanes whose fields start at bit `low`.
template <int bits>
struct UnalignedLanes {
  using In = Lanes<bits>;
  uint8x16_t index[2];
  int16x8_t left;

  UnalignedLanes() {
    index[0] = vld1q_u8(In::table.bytes);
    index[1] = vld1q_u8(In::table.bytes + 16);
    left = vld1q_s16(In::table.left);
  }
  __attribute__((always_inline)) void operator()(const uint8_t* p, uint16x8_t* x) const {
    x[0] = vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(p), index[0])), left);
    x[1] = vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(p + In::second_load), index[1])), left);
  }
};

// A constant in a register: clang, if it knows the value, makes each AND with it a copy and a BIC.
__attribute__((always_inline)) inline uint8x16_t held(uint8x16_t x) {
  asm("" : "+w"(x));
  return x;
}

#if !defined(MLX_DELTA_DOTPROD)

inline void put(int16_t* x, int place, int32_t value) { x[place] = int16_t(value); }

template <int bits>
struct Fields : Lanes<bits> {
  using In = Lanes<bits>;
  using Chunk = int16x8_t[8];  // field j of twice 8 lanes, `shift(j)` bits high or on top
  UnalignedLanes<bits> unaligned_lanes;
  uint16x8_t masks[3];

  Fields() {
    for (int j = 0; j < 3; ++j) masks[j] = vreinterpretq_u16_u8(held(vreinterpretq_u8_u16(vdupq_n_u16(In::mask(j)))));
  }

  __attribute__((always_inline)) void operator()(const uint8_t* p, int16x8_t* f) const {
    MLX_DELTA_UNROLL
    for (int v = 0; v < (In::quad ? 1 : 2); ++v) {
      uint16x8_t x[2];
      lanes(p + v * 4 * bits, x);
      MLX_DELTA_UNROLL
      for (int half = 0; half < 2; ++half) {
        f[4 * v + half] = masked<0>(x[half]);
        f[4 * v + 2 + half] = masked<1>(x[half]);
        if constexpr (In::quad) {
          f[4 + half] = masked<2>(x[half]);
          f[6 + half] = masked<3>(x[half]);
        }
      }
    }
  }

  static __attribute__((always_inline)) I dot(const int16x8_t* f, const int16_t* x) {
    constexpr int sums = In::quad ? 4 : 2;
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
    if constexpr (In::quad) total = add_field<2>(add_field<1>(total, s[1]), s[2]);
    return I(total);
  }

 private:
  template <int j>
  __attribute__((always_inline)) int16x8_t masked(uint16x8_t x) const {
    if constexpr (In::on_top(j))
      return vreinterpretq_s16_u16(vshrq_n_u16(x, In::shift(j)));
    else
      return vreinterpretq_s16_u16(vandq_u16(x, masks[j]));
  }

  // total + sum / 2^shift of the field
  template <int j>
  static __attribute__((always_inline)) int32x4_t add_field(int32x4_t total, int32x4_t sum) {
    if constexpr (In::shift(j) == 0)
      return vaddq_s32(total, sum);
    else
      return vsraq_n_s32(total, sum, In::shift(j));
  }

  __attribute__((always_inline)) void lanes(const uint8_t* p, uint16x8_t* x) const {
    if constexpr (In::unaligned) {
      unaligned_lanes(p, x);
    } else if constexpr (bits == 2) {
      const uint8x16_t bytes = vld1q_u8(p);
      x[0] = vmovl_u8(vget_low_u8(bytes));
      x[1] = vmovl_high_u8(bytes);
    } else {
      x[0] = vreinterpretq_u16_u8(vld1q_u8(p));
      x[1] = vreinterpretq_u16_u8(vld1q_u8(p + 16));
    }
  }
};

#endif

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
