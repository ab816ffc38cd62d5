// metal::fast:: as wrong as the Metal specification allows (table 8.2, "fast math"): results are off by the largest error,
// up or down as a hash of the argument says, so that equal arguments still have equal results. What is not here is as
// precise as precise::.
#pragma once
#include "elementwise.h"

namespace msl {

inline bool rounds_up(float x) { return (metal::as_type<uint>(x) * 0x9e3779b1u >> 16) & 1; }

// `value` so many units in the last place off; zeros, infinities and NaN stay.
inline float off_by_ulps(float value, int ulps, float argument) {
  const uint bits = metal::as_type<uint>(value);
  const uint exponent = bits >> 23 & 0xff;
  if (exponent == 0 || exponent == 0xff) return value;
  const uint moved = rounds_up(argument) ? bits + uint(ulps) : bits - uint(ulps);
  return metal::as_type<float>(moved);
}

inline float off_by(float value, float error, float argument) {
  return rounds_up(argument) ? value + error : value - error;
}

}  // namespace msl

namespace metal::fast {

inline float exp(float x) {
  const float size = metal::abs(2.0f * x);
  return msl::off_by_ulps(metal::exp(x), 3 + int(metal::min(size, 1000.0f)), x);
}
inline float exp2(float x) {
  const float size = metal::abs(2.0f * x);
  return msl::off_by_ulps(metal::exp2(x), 3 + int(metal::min(size, 1000.0f)), x);
}
inline float log(float x) {
  const float value = metal::log(x);
  return x >= 0.5f && x <= 2.0f ? msl::off_by(value, 0x1p-21f, x) : msl::off_by_ulps(value, 3, x);
}
inline float log2(float x) {
  const float value = metal::log2(x);
  return x >= 0.5f && x <= 2.0f ? msl::off_by(value, 0x1p-22f, x) : msl::off_by_ulps(value, 3, x);
}
// Beyond pi the specification says only that errors are larger.
inline float angle_error(float x) { return metal::abs(x) <= M_PI_F ? 0x1p-13f : 0x1p-13f * metal::abs(x); }
inline float cos(float x) { return msl::off_by(metal::cos(x), angle_error(x), x); }
inline float sin(float x) { return msl::off_by(metal::sin(x), angle_error(x), x); }
inline float rsqrt(float x) { return msl::off_by_ulps(metal::rsqrt(x), 2, x); }

using metal::abs, metal::acos, metal::asin, metal::atan, metal::atan2, metal::ceil, metal::clamp, metal::copysign,
    metal::cosh, metal::exp10, metal::fabs, metal::floor, metal::fma, metal::fmax, metal::fmin, metal::fmod,
    metal::fract, metal::isfinite, metal::isinf, metal::isnan, metal::log10, metal::max, metal::min, metal::mix,
    metal::pow, metal::powr, metal::rint, metal::round, metal::saturate, metal::sign, metal::sinh, metal::sqrt,
    metal::tan, metal::tanh, metal::trunc;

}  // namespace metal::fast
