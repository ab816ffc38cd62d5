// What sample compares and adds: keys that order floats, masses of tokens as integers, shares of their sums.
#pragma once

#include "common.h"

// Larger floats have larger keys.
inline uint key_of(float x) {
  const uint bits = as_type<uint>(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

inline float value_of_key(uint key) {
  return as_type<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// exp(x - max) in 2^-43, rounded to even.
inline ulong mass_of(float x, float max) {
  const uint bits = as_type<uint>(x == max ? 1.0f : precise::exp(x - max));  // inf - inf is no number
  const int shift = int(bits >> 23) - 107;
  const uint digits = (bits & 0x7fffffu) | 0x800000u;
  if (shift >= 0) {
    return ulong(digits) << uint(shift);
  }
  if (shift < -24) {
    return 0;
  }
  const uint one = 1u << uint(-shift);
  const uint whole = digits >> uint(-shift);
  const uint rest = digits & (one - 1);
  return ulong(whole + (rest > one / 2 || (rest == one / 2 && (whole & 1) != 0) ? 1 : 0));
}

// The upper 64 bits of a product; lower: the others. By words of 32 bits, in which a compiler does not see a product of
// 128 bits, a type that a GPU lacks.
inline ulong product_of(ulong a, ulong b, thread ulong& lower) {
  const uint a0 = uint(a), a1 = uint(a >> 32), b0 = uint(b), b1 = uint(b >> 32);
  const ulong second = ulong(mulhi(a0, b0)) + ulong(a1 * b0) + ulong(a0 * b1);
  const ulong third = ulong(mulhi(a1, b0)) + ulong(mulhi(a0, b1)) + ulong(a1 * b1) + (second >> 32);
  lower = second << 32 | ulong(a0 * b0);
  return (ulong(mulhi(a1, b1)) << 32) + third;
}

// A share of a sum of masses, rounded to 53 digits as the product of doubles is, then up: of equal masses it is a whole
// number of them, and no more, where it is in arithmetic. share: in 2^-64.
inline ulong share_of(ulong share, ulong total) {
  ulong lower;
  const ulong upper = product_of(share, total, lower);
  const uint digits = upper >> 32 != 0 ? 64 - clz(uint(upper >> 32)) : 32 - clz(uint(upper));
  if (digits > 53) {
    const uint drop = digits - 53;
    return (upper + (ulong(1) << (drop - 1))) >> drop << drop;
  }
  const uint drop = 11 + digits;  // of lower
  const ulong rounded = drop < 64 ? lower + (ulong(1) << (drop - 1)) : lower + (ulong(1) << 63);
  const bool rest = drop < 64 && rounded >> drop != 0;
  return max(upper + (rounded < lower || rest ? 1 : 0), ulong(1));
}
