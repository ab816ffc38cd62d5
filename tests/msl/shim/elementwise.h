// Metal's math: elementwise on scalars and vectors, in float for integers and bfloat, else in the argument's own type.
#pragma once
#include "types.h"

namespace metal {

template <class T>
using math_t = conditional_t<is_integral_v<T> || is_same_v<T, bfloat>, float, T>;

// The type two arguments meet in: the vector's, or what C++ arithmetic gives.
template <class T, class U>
constexpr auto meet() {
  if constexpr (!msl::is_scalar_v<T>) {
    return T{};
  } else if constexpr (!msl::is_scalar_v<U>) {
    return U{};
  } else {
    return T{} + U{};
  }
}
template <class T, class U>
using meet_t = decltype(meet<T, U>());

#define MSL_UNARY(name)                                \
  template <class T>                                   \
  inline math_t<T> name(T x) {                         \
    return __builtin_elementwise_##name(math_t<T>(x)); \
  }
MSL_UNARY(exp)
MSL_UNARY(exp2)
MSL_UNARY(log)
MSL_UNARY(log2)
MSL_UNARY(log10)
MSL_UNARY(sin)
MSL_UNARY(cos)
MSL_UNARY(tan)
MSL_UNARY(asin)
MSL_UNARY(acos)
MSL_UNARY(atan)
MSL_UNARY(sinh)
MSL_UNARY(cosh)
MSL_UNARY(tanh)
MSL_UNARY(floor)
MSL_UNARY(ceil)
MSL_UNARY(trunc)
MSL_UNARY(rint)
MSL_UNARY(round)
MSL_UNARY(sqrt)
#undef MSL_UNARY

template <class T>
inline T abs(T x) {
  return __builtin_elementwise_abs(x);
}
template <class T>
inline math_t<T> fabs(T x) {
  return __builtin_elementwise_abs(math_t<T>(x));
}
template <class T>
inline math_t<T> rsqrt(T x) {
  return math_t<T>(1) / sqrt(x);
}
template <class T>
inline math_t<T> fract(T x) {
  return math_t<T>(x) - floor(x);
}
template <class T>
inline T saturate(T x) {
  return __builtin_elementwise_min(__builtin_elementwise_max(x, T(0)), T(1));
}
template <class T>
inline T sign(T x) {
  return x > T(0) ? T(1) : x < T(0) ? T(-1) : T(0);
}

#define MSL_BINARY(name, builtin)                       \
  template <class T, class U>                           \
  inline meet_t<T, U> name(T a, U b) {                  \
    using M = meet_t<T, U>;                             \
    return __builtin_elementwise_##builtin(M(a), M(b)); \
  }
MSL_BINARY(pow, pow)
MSL_BINARY(powr, pow)
MSL_BINARY(copysign, copysign)
MSL_BINARY(fmin, min)
MSL_BINARY(fmax, max)
#undef MSL_BINARY

// Of scalars only.
template <class T>
inline math_t<T> exp10(T x) {
  return pow(math_t<T>(10), math_t<T>(x));
}
template <class T, class U>
inline meet_t<T, U> fmod(T x, U y) {
  return meet_t<T, U>(__builtin_fmodf(float(x), float(y)));
}
template <class T, class U>
inline meet_t<T, U> atan2(T y, U x) {
  return meet_t<T, U>(__builtin_atan2f(float(y), float(x)));
}

// Of integers, min and max take one type only, as in Metal, where two would be ambiguous. The types of one width
// promote to int.
#define MSL_MIN_MAX(name)                                                                   \
  template <class T>                                                                        \
  inline T name(T a, T b) {                                                                 \
    return __builtin_elementwise_##name(a, b);                                              \
  }                                                                                         \
  template <class T, class U>                                                               \
  inline enable_if_t<!is_integral_v<T> || !is_integral_v<U>, meet_t<T, U>> name(T a, U b) { \
    using M = meet_t<T, U>;                                                                 \
    return __builtin_elementwise_##name(M(a), M(b));                                        \
  }
MSL_MIN_MAX(min)
MSL_MIN_MAX(max)
#undef MSL_MIN_MAX

template <class T, class U, class V>
inline T clamp(T x, U low, V high) {
  return T(min(max(x, T(low)), T(high)));
}
template <class T>
inline T fma(T a, T b, T c) {
  return __builtin_elementwise_fma(a, b, c);
}
template <class T, class U>
inline T mix(T a, T b, U t) {
  return a + (b - a) * T(t);
}
template <class T, class C>
inline T select(T if_false, T if_true, C condition) {
  return condition ? if_true : if_false;
}

template <class T>
inline bool isnan(T x) {
  return __builtin_isnan(float(x));
}
template <class T>
inline bool isinf(T x) {
  return __builtin_isinf(float(x));
}
template <class T>
inline bool isfinite(T x) {
  return __builtin_isfinite(float(x));
}
template <class T>
inline bool signbit(T x) {
  return __builtin_signbit(float(x));
}

template <class T>
inline auto dot(T a, T b) {
  auto sum = a[0] * b[0];
  for (int i = 1; i < __builtin_vectorelements(T); i++) sum += a[i] * b[i];
  return sum;
}
template <class T>
inline auto length_squared(T a) {
  return dot(a, a);
}
template <class T>
inline auto length(T a) {
  return sqrt(dot(a, a));
}
template <class T>
inline bool any(T v) {
  if constexpr (msl::is_scalar_v<T>) {
    return v;
  } else {
    bool result = false;
    for (int i = 0; i < __builtin_vectorelements(T); i++) result |= bool(v[i]);
    return result;
  }
}
template <class T>
inline bool all(T v) {
  return !any(v == T(0));
}

template <class T>
inline T popcount(T x) {
  return T(__builtin_popcountg(make_unsigned_t<T>(x)));
}
template <class T>
inline T clz(T x) {
  return T(__builtin_clzg(make_unsigned_t<T>(x), int(sizeof(T) * 8)));
}
template <class T>
inline T ctz(T x) {
  return T(__builtin_ctzg(make_unsigned_t<T>(x), int(sizeof(T) * 8)));
}
template <class T>
inline T mulhi(T a, T b) {
  static_assert(sizeof(T) == 4, "mulhi is emulated for 32-bit integers");
  return T((conditional_t<is_signed_v<T>, long, ulong>(a) * b) >> 32);
}
template <class T>
inline T rotate(T x, T bits) {
  constexpr T mask = sizeof(T) * 8 - 1;
  return T(T(x << (bits & mask)) | T(make_unsigned_t<T>(x) >> (-bits & mask)));
}
template <class T>
inline T extract_bits(T x, uint offset, uint bits) {
  return bits == 0 ? T(0) : T(T(x << (sizeof(T) * 8 - offset - bits)) >> (sizeof(T) * 8 - bits));
}

// What the host's libm does. Bare names do the same; fast:: is in fast.h.
namespace precise {
using metal::abs, metal::acos, metal::asin, metal::atan, metal::atan2, metal::ceil, metal::clamp, metal::copysign,
    metal::cos, metal::cosh, metal::exp, metal::exp2, metal::exp10, metal::fabs, metal::floor, metal::fma, metal::fmax,
    metal::fmin, metal::fmod, metal::fract, metal::isfinite, metal::isinf, metal::isnan, metal::log, metal::log2,
    metal::log10, metal::max, metal::min, metal::mix, metal::pow, metal::powr, metal::rint, metal::round, metal::rsqrt,
    metal::saturate, metal::sign, metal::sin, metal::sinh, metal::sqrt, metal::tan, metal::tanh, metal::trunc;
}  // namespace precise

}  // namespace metal
