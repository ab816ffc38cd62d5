// Weight formats, and their values as floats.
#pragma once

#include "common.h"

// Affine: per group of `group_size` columns w = scale q + bias, q in `bits` bits, packed little-endian into words. 32
// values fill `bits` words exactly for every width, so that is what a thread takes at a time: it lies in one group,
// starts at a word, and needs no neighbour.
template <typename S, int bits_, int group_size_>
struct Affine {
  typedef S Scale;
  enum { bits = bits_, group_size = group_size_, block = 32 };
};

// Plain rows, eight values at a time. K not a multiple of 8 makes rows unaligned: those are read one by one.
template <typename W, bool aligned_>
struct Plain {
  typedef W Weight;
  enum { bits = 0, aligned = aligned_, block = 8 };
};

// In place of a segment that is not there.
struct None {
  enum { bits = 0, block = 1 };
};

// The words of one block of 32 values, in loads as wide as their alignment allows: a GPU's load takes up to four words
// that are aligned as one.
template <int bits>
inline void load_words(device const uint* from, thread uint* to) {
  const int each = bits % 4 == 0 ? 4 : bits % 3 == 0 ? 3 : bits == 2 ? 2 : 4;
  UNROLL
  for (int i = 0; i + each <= bits; i += each) {
    if (each == 3) {
      const packed_uint3 three = *(device const packed_uint3*)(from + i);
      to[i] = three[0];
      to[i + 1] = three[1];
      to[i + 2] = three[2];
    } else if (each == 2) {
      const uint2 two = *(device const uint2*)(from + i);
      to[i] = two[0];
      to[i + 1] = two[1];
    } else {
      const packed_uint4 four = *(device const packed_uint4*)(from + i);
      to[i] = four[0];
      to[i + 1] = four[1];
      to[i + 2] = four[2];
      to[i + 3] = four[3];
    }
  }
  if (bits == 5) {
    to[4] = from[4];
  }
}

// How the 32 values of a block become floats, two at a time. `word >> t & mask` leaves one of them in the low ten bits
// of either half, and these are float16 numbers below the normal ones: q 2^(offset - 24). A GPU's float32 instructions
// take a float16 operand as it is, so what is left to do is a multiplication by 2^(24 - offset), and that is done to
// the column of x instead, once for all rows. Powers of two are exact: the products have the bits of q x.
//
// A window is 32 bits of the block from some bit on, which is a shift of a word or of two; values that share one and
// are each other's partner are cut out together. The choice is by integer programming: one mask for two values, few
// windows, the second value soon after the first (a register holds it until then), and offsets that recur after 8
// values. The second 16 values are like the first.
struct Field {
  short window;    // its first bit in the block
  ushort partner;  // the value in the other half
};

// Of 2, 3, 4, 5, 6 and 8 bits.
constant constexpr Field kFields[6][16] = {
    {{-8, 4}, {-4, 6}, {-2, 10}, {-2, 7}, {-8, 0}, {8, 12}, {-4, 1}, {-2, 3},
     {8, 13}, {12, 14}, {-2, 2}, {14, 15}, {8, 5}, {8, 8}, {12, 9}, {14, 11}},
    {{-7, 3}, {-1, 5}, {-1, 6}, {-7, 0}, {5, 7}, {-1, 1}, {-1, 2}, {5, 4},
     {17, 11}, {23, 14}, {23, 13}, {17, 8}, {29, 15}, {23, 10}, {23, 9}, {29, 12}},
    {{-4, 3}, {3, 6}, {3, 5}, {-4, 0}, {12, 8}, {3, 2}, {3, 1}, {28, 11},
     {12, 4}, {35, 13}, {35, 14}, {28, 7}, {44, 15}, {35, 9}, {35, 10}, {44, 12}},
    {{-4, 3}, {5, 5}, {10, 6}, {-4, 0}, {16, 7}, {5, 1}, {10, 2}, {16, 4},
     {36, 11}, {45, 13}, {50, 14}, {36, 8}, {56, 15}, {45, 9}, {50, 10}, {56, 12}},
    {{0, 3}, {5, 4}, {10, 5}, {0, 0}, {5, 1}, {10, 2}, {32, 8}, {42, 10},
     {32, 6}, {53, 12}, {42, 7}, {64, 14}, {53, 9}, {74, 15}, {64, 11}, {74, 13}},
    {{0, 2}, {8, 3}, {0, 0}, {8, 1}, {32, 6}, {40, 7}, {32, 4}, {40, 5},
     {64, 10}, {72, 11}, {64, 8}, {72, 9}, {96, 14}, {104, 15}, {96, 12}, {104, 13}},
};

// i is known at compile time once the caller's loop is unrolled, here and below.
template <int bits>
inline int window_of(int i) {
  const int row = bits == 8 ? 5 : bits > 2 ? bits - 2 : 0;
  return kFields[row][i % 16].window + i / 16 * 16 * bits;
}

template <int bits>
inline int partner_of(int i) {
  const int row = bits == 8 ? 5 : bits > 2 ? bits - 2 : 0;
  return kFields[row][i % 16].partner + i / 16 * 16;
}

// What columns i, i + 8, i + 16 and i + 24 of x are multiplied by.
template <int bits>
inline float factor_of(int i) {
  return float(1u << (24 - (i * bits - window_of<bits>(i)) % 16));
}

// Value i and its partner, each in its half.
template <int bits>
inline uint cut(const thread uint* words, int i) {
  const int first = window_of<bits>(i);
  const int partner = partner_of<bits>(i);
  const uint one = (1u << bits) - 1u;
  const uint mask = one << (i * bits - first) | one << (partner * bits - first);
  const int begin = min(i, partner) * bits;  // of what the mask leaves
  const int end = max(i, partner) * bits + bits;
  if (begin / 32 == (end - 1) / 32) {
    const int shift = first - begin / 32 * 32;
    return (shift < 0 ? words[begin / 32] << -shift : words[begin / 32] >> shift) & mask;
  }
  return (words[first / 32] >> first % 32 | words[first / 32 + 1] << (32 - first % 32)) & mask;
}

// Value i, of what cut() made: times factor_of(i) it is q.
template <int bits>
inline float value_of(uint pair, int i) {
  return float(as_type<vec<half, 2>>(pair)[(i * bits - window_of<bits>(i)) / 16]);
}
