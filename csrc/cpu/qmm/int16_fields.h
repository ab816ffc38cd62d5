// The vectors of int16.h: how 64 packed weights become lanes and meet 64 values of x. int16_avx2.h, int16_neon.h
// and int16_dotprod.h (NEON's dot products of bytes, an extension that cores since 2018 have) each give
//
//   Fields<bits>
//     Chunk               vectors of 64 weights; `order` says which is where
//     operator()(p, f)    unpacks the 64 weights at p; nothing beyond their bytes is read
//     dot(f, x)           sums of weights times x, exact, in W 32-bit lanes whose total is the product
//     offset              what was taken off each weight to fit its lane
//   nearest(F)            the nearest integers, ties to even
//   floats(I)             integers as floats
//   put(x, place, value)  makes `value` the factor of the weight at a place, 0 to 63, of a chunk
#pragma once

#include "cpu/simd/vector.h"

#if (defined(__AVX2__) && !defined(__AVX512F__)) || defined(MLX_DELTA_ISA_NEON)
#define MLX_DELTA_INT16
#if defined(MLX_DELTA_ISA_NEON) && defined(__ARM_FEATURE_DOTPROD)
#define MLX_DELTA_DOTPROD
#endif

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int kChunk = 64;

// Which weight is at place 16 j + i. Packed weights come apart in 16 lanes of 4 (quads) or in twice 16 lanes of 2
// (pairs).
enum Order { quads, pairs, in_line };
#if defined(MLX_DELTA_DOTPROD)
constexpr Order order_of(int bits) { return bits <= 3 ? quads : bits < 8 ? pairs : in_line; }
#else
constexpr Order order_of(int bits) { return bits <= 4 ? quads : pairs; }
#endif
constexpr int weight_at(int order, int j, int i) {
  if (order == in_line && order_of(8) == in_line) return 16 * j + i;  // no third case where there is none
  return order == quads ? 4 * i + j : 32 * (j / 2) + 2 * i + j % 2;
}

// Fields of 16-bit lanes, of 4 or 2 weights as the order says.
template <int bits>
struct Lanes {
  static constexpr Order order = order_of(bits);
  static constexpr bool quad = order == quads;
  static constexpr int offset = 0;
  static constexpr int lane_bits = (quad ? 4 : 2) * bits;  // of a lane that are used
  static constexpr bool unaligned = bits == 3 || bits == 5 || bits == 6;
  static constexpr int low = unaligned ? 16 - lane_bits : 0;  // the bit at which they start, when aligned
  static constexpr int shift(int j) { return low + (quad ? j : j % 2) * bits; }  // where field j stands
  static constexpr bool on_top(int j) { return j == 3 || (!quad && j == 1); }    // above it is nothing
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

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
