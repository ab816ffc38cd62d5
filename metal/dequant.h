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
struct None {};

// The words of one block of 32 values, in loads as wide as their alignment allows. An odd number is asked for word by
// word: Apple's loads take up to four words aligned as one is, so its compiler can join them, and need not.
template <int bits>
inline void load_words(device const uint* from, thread uint* to) {
  if (bits % 4 == 0) {
    UNROLL
    for (int i = 0; i + 3 < bits; i += 4) {
      const uint4 four = *(device const uint4*)(from + i);
      to[i] = four[0];
      to[i + 1] = four[1];
      to[i + 2] = four[2];
      to[i + 3] = four[3];
    }
  } else if (bits % 2 == 0) {
    UNROLL
    for (int i = 0; i + 1 < bits; i += 2) {
      const uint2 two = *(device const uint2*)(from + i);
      to[i] = two[0];
      to[i + 1] = two[1];
    }
  } else {
    UNROLL
    for (int i = 0; i < bits; i++) {
      to[i] = from[i];
    }
  }
}

// The integer at bit `shift` of `field`, all other bits of which are 0: or-ing an exponent makes it the end of the
// mantissa of 2^(23 - shift) + q, which one exact subtraction leaves as q. A conversion from int has a quarter of the
// rate of these two operations on Apple's and NVIDIA's GPUs, and a shift of every value is not needed.
inline float from_field(uint field, int shift) {
  return as_type<float>(field | (uint(150 - shift) << 23)) - float(1u << (23 - shift));
}

// Value i of 32 packed ones. i is known at compile time once the caller's loop is unrolled.
template <int bits>
inline float unpack(const thread uint* words, int i) {
  const uint mask = (1u << bits) - 1u;
  const int word = i * bits / 32;
  const int shift = i * bits % 32;
  if (shift + bits <= 23) {
    return from_field(words[word] & (mask << shift), shift);
  }
  if (shift + bits <= 32) {  // too high for the mantissa: a shift that all such values of the word share
    return from_field((words[word] >> 9) & (mask << (shift - 9)), shift - 9);
  }
  return from_field(((words[word] >> shift) | (words[word + 1] << (32 - shift))) & mask, 0);
}
