// Metal's scalar and vector types, limits and type traits. Uses no C++ standard library: kernels compile in a fraction
// of the time.
#pragma once
#include "runtime.h"

#define METAL_FUNC inline __attribute__((always_inline))

// Address spaces are real: a pointer of one never converts to another's.
#define thread
#ifndef MSL_CONSTANT_SPACE
#define MSL_CONSTANT_SPACE 2
#endif
#define device __attribute__((address_space(1)))
#define constant __attribute__((address_space(MSL_CONSTANT_SPACE)))
#define threadgroup __attribute__((address_space(3)))

typedef _Float16 half;
typedef __bf16 bfloat;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

namespace metal {

#define MSL_VECTORS(T)                                \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##3 __attribute__((ext_vector_type(3))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
MSL_VECTORS(bool)
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
MSL_VECTORS(half)
MSL_VECTORS(bfloat)
MSL_VECTORS(float)
#undef MSL_VECTORS

template <class T, int N>
struct vec_of {
  typedef T type __attribute__((ext_vector_type(N)));
};
template <class T, int N>
using vec = typename vec_of<T, N>::type;

// Packed vectors are aligned as their elements. Those of three are structs: clang pads its own.
template <class T>
struct packed_of_three {
  T x, y, z;

  packed_of_three() = default;
  packed_of_three(T x, T y, T z) : x(x), y(y), z(z) {}
  packed_of_three(const device packed_of_three& from) : x(from.x), y(from.y), z(from.z) {}
  packed_of_three(const constant packed_of_three& from) : x(from.x), y(from.y), z(from.z) {}
  packed_of_three(const threadgroup packed_of_three& from) : x(from.x), y(from.y), z(from.z) {}
  packed_of_three(const packed_of_three& from) = default;
  packed_of_three& operator=(const packed_of_three& from) = default;
  T operator[](int i) const { return i == 0 ? x : i == 1 ? y : z; }
  operator typename vec_of<T, 3>::type() const { return {x, y, z}; }
};
#define MSL_PACKED(T)                                                              \
  typedef T packed_##T##2 __attribute__((ext_vector_type(2), aligned(sizeof(T)))); \
  typedef packed_of_three<T> packed_##T##3;                                        \
  typedef T packed_##T##4 __attribute__((ext_vector_type(4), aligned(sizeof(T))));
MSL_PACKED(char)
MSL_PACKED(uchar)
MSL_PACKED(short)
MSL_PACKED(ushort)
MSL_PACKED(int)
MSL_PACKED(uint)
MSL_PACKED(half)
MSL_PACKED(bfloat)
MSL_PACKED(float)
#undef MSL_PACKED

// ---- type traits ----
template <class T, T V>
struct integral_constant {
  static constexpr T value = V;
  using value_type = T;
  constexpr operator T() const { return V; }
};
template <bool B>
using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool B, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool B, class T = void>
using enable_if_t = typename enable_if<B, T>::type;

template <bool B, class T, class F>
struct conditional {
  using type = T;
};
template <class T, class F>
struct conditional<false, T, F> {
  using type = F;
};
template <bool B, class T, class F>
using conditional_t = typename conditional<B, T, F>::type;

template <class T>
using remove_cv_t = __remove_cv(T);
template <class T>
using remove_reference_t = __remove_reference_t(T);
template <class T>
using remove_pointer_t = __remove_pointer(T);

template <class T>
struct remove_addrspace {
  using type = T;
};
template <class T>
struct remove_addrspace<device T> {
  using type = T;
};
template <class T>
struct remove_addrspace<constant T> {
  using type = T;
};
template <class T>
struct remove_addrspace<threadgroup T> {
  using type = T;
};
template <class T>
using remove_addrspace_t = typename remove_addrspace<T>::type;
// A value's plain type: no reference, qualifier or address space.
template <class T>
using plain_t = remove_cv_t<typename remove_addrspace<remove_reference_t<T>>::type>;

#define MSL_TRAIT(name, ...)             \
  template <class T>                     \
  constexpr bool name##_v = __VA_ARGS__; \
  template <class T>                     \
  struct name : bool_constant<__VA_ARGS__> {};
MSL_TRAIT(is_integral, __is_integral(T))
MSL_TRAIT(is_floating_point,
          __is_floating_point(T) || __is_same(__remove_cv(T), half) || __is_same(__remove_cv(T), bfloat))
MSL_TRAIT(is_arithmetic, is_integral_v<T> || is_floating_point_v<T>)
MSL_TRAIT(is_signed, __is_signed(T) || is_floating_point_v<T>)
MSL_TRAIT(is_unsigned, __is_unsigned(T))
MSL_TRAIT(is_pointer, __is_pointer(T))
MSL_TRAIT(is_void, __is_void(T))
MSL_TRAIT(is_enum, __is_enum(T))
#undef MSL_TRAIT

template <class T, class U>
constexpr bool is_same_v = __is_same(T, U);
template <class T, class U>
struct is_same : bool_constant<__is_same(T, U)> {};
template <class T, class U>
constexpr bool is_convertible_v = __is_convertible(T, U);
template <class T, class U>
struct is_convertible : bool_constant<__is_convertible(T, U)> {};
template <class T>
using make_unsigned_t = __make_unsigned(T);

template <class T>
T&& declval();

// ---- limits ----
template <class T>
struct numeric_limits;

#define MSL_INTEGER_LIMITS(T)                                                                                 \
  template <>                                                                                                 \
  struct numeric_limits<T> {                                                                                  \
    static constexpr int digits = sizeof(T) * 8 - __is_signed(T);                                             \
    static constexpr T max() { return static_cast<T>(__is_signed(T) ? ~0ul >> (65 - sizeof(T) * 8) : ~0ul); } \
    static constexpr T min() { return static_cast<T>(~max()); }                                               \
    static constexpr T lowest() { return min(); }                                                             \
  };
MSL_INTEGER_LIMITS(char)
MSL_INTEGER_LIMITS(signed char)
MSL_INTEGER_LIMITS(uchar)
MSL_INTEGER_LIMITS(short)
MSL_INTEGER_LIMITS(ushort)
MSL_INTEGER_LIMITS(int)
MSL_INTEGER_LIMITS(uint)
MSL_INTEGER_LIMITS(long)
MSL_INTEGER_LIMITS(ulong)
#undef MSL_INTEGER_LIMITS
template <>
struct numeric_limits<bool> {
  static constexpr int digits = 1;
  static constexpr bool max() { return true; }
  static constexpr bool min() { return false; }
  static constexpr bool lowest() { return false; }
};

#define MSL_FLOAT_LIMITS(T, DIGITS, MAX, MIN, EPSILON)               \
  template <>                                                        \
  struct numeric_limits<T> {                                         \
    static constexpr int digits = DIGITS;                            \
    static constexpr T max() { return T(MAX); }                      \
    static constexpr T min() { return T(MIN); }                      \
    static constexpr T lowest() { return T(-MAX); }                  \
    static constexpr T epsilon() { return T(EPSILON); }              \
    static constexpr T infinity() { return T(__builtin_inff()); }    \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); } \
  };
MSL_FLOAT_LIMITS(half, 11, 65504.0f, 6.103515625e-5f, 9.765625e-4f)
MSL_FLOAT_LIMITS(bfloat, 8, 3.3895313892515355e38f, 1.1754943508222875e-38f, 7.8125e-3f)
MSL_FLOAT_LIMITS(float, 24, 3.40282346638528860e38f, 1.17549435082228751e-38f, 1.1920928955078125e-7f)
#undef MSL_FLOAT_LIMITS

template <class T, class U>
inline T as_type(U value) {
  static_assert(sizeof(T) == sizeof(U), "as_type needs types of one size");
  return __builtin_bit_cast(T, value);
}

}  // namespace metal
using metal::as_type;  // a keyword in Metal

#define M_PI_F 3.14159265358979323846f
#define M_PI_H half(3.14159265358979323846f)
#define M_LOG2E_F 1.44269504088896340736f
#define M_LN2_F 0.69314718055994530942f
#define M_E_F 2.71828182845904523536f
#define M_SQRT2_F 1.41421356237309504880f
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define HUGE_VALF __builtin_inff()
#define FLT_MAX 3.40282346638528860e38f
#define FLT_MIN 1.17549435082228751e-38f
#define FLT_EPSILON 1.1920928955078125e-7f

// Constructors of vectors from scalars and shorter vectors: `float4(a, b.xy, c)` is rewritten to
// `msl::make<metal::float4>(...)`.
namespace msl {

template <class T>
constexpr bool is_scalar_v = metal::is_arithmetic_v<T> || metal::is_enum_v<T>;

template <class T, class A>
inline void append(T& to, int& at, A from) {
  if constexpr (is_scalar_v<A>) {
    to[at++] = from;
  } else {
    for (int i = 0; i < __builtin_vectorelements(A); i++) to[at++] = from[i];
  }
}

template <class T, class... A>
inline T make(A... parts) {
  if constexpr (sizeof...(A) == 1) {
    if constexpr ((is_scalar_v<A> && ...)) {
      return (T(parts), ...);
    } else {
      return (__builtin_convertvector(parts, T), ...);
    }
  } else {
    T result{};
    int at = 0;
    (append(result, at, parts), ...);
    return result;
  }
}

}  // namespace msl
