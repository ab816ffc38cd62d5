// Barriers and simdgroup operations.
#pragma once
#include "math.h"

namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

inline void threadgroup_barrier(mem_flags) { msl::wait_for_threadgroup(); }
inline void simdgroup_barrier(mem_flags) { msl::wait_for_simdgroup(); }

}  // namespace metal

namespace msl {

inline uint thread_index() {
  const metal::uint3 at = thread_in_threadgroup(), size = threadgroup_size();
  return at.x + size.x * (at.y + size.y * at.z);
}

// A value of another lane, word by word.
template <class T, class F>
inline T exchange(T value, F shuffle_word) {
  constexpr int words = int(sizeof(T) + 3) / 4;
  uint from[words] = {}, to[words];
  __builtin_memcpy(from, &value, sizeof(T));
  for (int i = 0; i < words; i++) to[i] = shuffle_word(from[i]);
  T result;
  __builtin_memcpy(&result, to, sizeof(T));
  return result;
}
template <class T>
inline T from_lane(T value, uint lane) {
  return exchange(value, [lane](uint word) { return shuffle(word, lane); });
}
template <class T>
inline T from_xor(T value, uint mask) {
  return exchange(value, [mask](uint word) { return shuffle_xor(word, mask); });
}

}  // namespace msl

namespace metal {

// The same balanced tree as the emulator's, so that both add in one order.
#define MSL_REDUCE(name, combined)                     \
  template <uint width, class T>                       \
  inline T reduce_##name(T a) {                        \
    for (uint mask = width / 2; mask > 0; mask /= 2) { \
      const T b = msl::from_xor(a, mask);              \
      a = T(combined);                                 \
    }                                                  \
    return a;                                          \
  }                                                    \
  template <class T>                                   \
  inline T simd_##name(T value) {                      \
    return reduce_##name<msl::kSimdWidth>(value);      \
  }                                                    \
  template <class T>                                   \
  inline T quad_##name(T value) {                      \
    return reduce_##name<4>(value);                    \
  }
MSL_REDUCE(sum, a + b)
MSL_REDUCE(product, a* b)
MSL_REDUCE(max, __builtin_elementwise_max(a, b))
MSL_REDUCE(min, __builtin_elementwise_min(a, b))
MSL_REDUCE(and, a& b)
MSL_REDUCE(or, a | b)
MSL_REDUCE(xor, a ^ b)
#undef MSL_REDUCE
inline bool simd_any(bool value) { return simd_or(uint(value)) != 0; }
inline bool simd_all(bool value) { return simd_and(uint(value)) != 0; }

template <class T>
inline T simd_shuffle(T value, ushort lane) {
  return msl::from_lane(value, lane);
}
template <class T>
inline T simd_broadcast(T value, ushort lane) {
  return msl::from_lane(value, lane);
}
template <class T>
inline T simd_broadcast_first(T value) {
  return msl::from_lane(value, 0);
}
template <class T>
inline T simd_shuffle_xor(T value, ushort mask) {
  return msl::from_xor(value, mask);
}
template <class T>
inline T simd_shuffle_down(T value, ushort n) {
  const uint lane = msl::lane();
  return msl::from_lane(value, lane + n < msl::kSimdWidth ? lane + n : lane);
}
template <class T>
inline T simd_shuffle_up(T value, ushort n) {
  const uint lane = msl::lane();
  return msl::from_lane(value, lane < n ? lane : lane - n);
}

// The lanes that a shift leaves empty take `fill` from the other end.
template <class T>
inline T simd_shuffle_and_fill_up(T value, T fill, ushort n) {
  const uint from = (msl::lane() - n) % msl::kSimdWidth;
  const T other = msl::from_lane(fill, from);
  value = msl::from_lane(value, from);
  return msl::lane() < n ? other : value;
}
template <class T>
inline T simd_shuffle_and_fill_down(T value, T fill, ushort n) {
  const uint from = (msl::lane() + n) % msl::kSimdWidth;
  const T other = msl::from_lane(fill, from);
  value = msl::from_lane(value, from);
  return msl::lane() + n >= msl::kSimdWidth ? other : value;
}

// Of the lanes below this one, or up to it.
#define MSL_PREFIX(name, identity, op)                               \
  template <class T>                                                 \
  inline T simd_prefix_inclusive_##name(T value) {                   \
    for (uint n = 1; n < msl::kSimdWidth; n *= 2) {                  \
      const T other = simd_shuffle_up(value, ushort(n));             \
      if (msl::lane() >= n) value = T(other op value);               \
    }                                                                \
    return value;                                                    \
  }                                                                  \
  template <class T>                                                 \
  inline T simd_prefix_exclusive_##name(T value) {                   \
    value = simd_shuffle_up(simd_prefix_inclusive_##name(value), 1); \
    return msl::lane() == 0 ? T(identity) : value;                   \
  }
MSL_PREFIX(sum, 0, +)
MSL_PREFIX(product, 1, *)
#undef MSL_PREFIX

}  // namespace metal
