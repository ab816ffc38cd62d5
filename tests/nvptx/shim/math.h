// Scalar functions that the GPU has no instruction for, or only an approximate one; the others are elementwise.h's.
#pragma once
#include <instructions.h>

namespace msl {

// e^x = 2^y + what the rounding of y = x log2(e), and of log2(e) itself, would cost.
inline float exp(float x) {
  const float y = x * M_LOG2E_F;
  const float lost = __builtin_fmaf(x, 1.92596299e-8f, __builtin_fmaf(x, M_LOG2E_F, -y));
  const float power = exp2(y);
  return __builtin_isinf(y) ? power : __builtin_fmaf(power, lost * M_LN2_F, power);
}
inline float log(float x) { return log2(x) * M_LN2_F; }

// sin (quarter 0) or cos (quarter 1): pi/2 in three parts holds for the angles of 100000s of positions, then the
// Taylor series on [-pi/4, pi/4].
inline float sine(float x, int quarter) {
  const float turns = __builtin_rintf(x * 0.636619772367581343f);
  float r = __builtin_fmaf(-turns, 1.57079625129699707031f, x);
  r = __builtin_fmaf(-turns, 7.54978941586159635335e-8f, r);
  r = __builtin_fmaf(-turns, 5.39030285815811905305e-15f, r);
  quarter += int(turns);
  const float s = r * r;
  float odd = __builtin_fmaf(s, 2.75573192e-6f, -1.98412698e-4f);
  odd = __builtin_fmaf(s, odd, 8.33333333e-3f);
  odd = __builtin_fmaf(s, odd, -1.66666667e-1f);
  odd = __builtin_fmaf(s * odd, r, r);
  float even = __builtin_fmaf(s, 2.48015873e-5f, -1.38888889e-3f);
  even = __builtin_fmaf(s, even, 4.16666667e-2f);
  even = __builtin_fmaf(s, even, -0.5f);
  even = __builtin_fmaf(s, even, 1.0f);
  const float value = quarter & 1 ? even : odd;
  return quarter & 2 ? -value : value;
}
inline float sin(float x) { return sine(x, 0); }
inline float cos(float x) { return sine(x, 1); }

}  // namespace msl

// What elementwise.h calls for floats; half types go through float, and vectors are not needed.
#define __builtin_elementwise_exp(x) decltype(x)(msl::exp(float(x)))
#define __builtin_elementwise_exp2(x) decltype(x)(msl::exp2(float(x)))
#define __builtin_elementwise_log(x) decltype(x)(msl::log(float(x)))
#define __builtin_elementwise_log2(x) decltype(x)(msl::log2(float(x)))
#define __builtin_elementwise_sin(x) decltype(x)(msl::sin(float(x)))
#define __builtin_elementwise_cos(x) decltype(x)(msl::cos(float(x)))
#include "elementwise.h"

namespace metal {
inline float rsqrt(float x) { return msl::rsqrt(x); }
namespace precise {
using metal::rsqrt;
}
namespace fast = precise;
}  // namespace metal
