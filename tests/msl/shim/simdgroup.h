// Barriers and simdgroup operations. Each carries its call site, so that a divergence names both places.
#pragma once
#include "elementwise.h"

namespace msl {
inline uint lane() { return current->builtins.lane; }
}  // namespace msl

namespace metal {

enum class mem_flags : uint { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }

// As a default argument this is where the operation is called.
struct Caller {
  const char* file;
  int line;
  int column;
  static constexpr Caller here(const char* f = __builtin_FILE(), int l = __builtin_LINE(), int c = __builtin_COLUMN()) {
    return {f, l, c};
  }
  msl::Site site(const char* operation) const { return {file, line, column, operation}; }
};

inline void threadgroup_barrier(mem_flags flags, Caller caller = Caller::here()) {
  msl::wait(msl::kWaitsForThreadgroup, caller.site("threadgroup_barrier"), uint(flags));
}
inline void simdgroup_barrier(mem_flags flags, Caller caller = Caller::here()) {
  msl::wait(msl::kWaitsForSimdgroup, caller.site("simdgroup_barrier"), uint(flags));
}

// One simd operation of the calling lane: its value left for the others, and theirs to take.
// There are two sets of slots because a lane is at most one operation ahead of its slowest peer.
template <class T>
class Exchange {
 public:
  Exchange(T value, const msl::Site& site) : site_(site), group_(msl::simdgroups[msl::current->builtins.simdgroup]) {
    static_assert(sizeof(T) <= msl::kSlotBytes, "value too large for a simd operation");
    slots_ = group_.slots[++msl::current->exchanges & 1];
    __builtin_memcpy_inline(slots_[lane()], &value, sizeof(T));
    msl::wait(msl::kWaitsForSimdgroup, site, 0);
  }

  uint lane() const { return msl::current->builtins.lane; }
  bool active(uint lane) const { return group_.active >> lane & 1; }
  msl::Simdgroup& group() const { return group_; }

  T value(uint lane) const {
    T result;
    __builtin_memcpy_inline(&result, slots_[lane], sizeof(T));
    return result;
  }
  T checked(uint lane) const {
    if (lane >= msl::kSimdWidth || !active(lane))
      msl::fail(site_, "%s reads lane %u, which is not active", site_.operation, lane);
    return value(lane);
  }

 private:
  msl::Site site_;
  msl::Simdgroup& group_;
  char (*slots_)[msl::kSlotBytes];
};

// Over the active lanes of the `width` around this one, as a balanced tree, so the result does not depend on the order
// of lanes.
template <uint width, class T, class F>
inline T reduce(T value, T identity, F combine, const msl::Site& site) {
  Exchange<T> exchange(value, site);
  msl::Simdgroup& group = exchange.group();
  T part[width];
  if (width == msl::kSimdWidth && group.reduced) {
    __builtin_memcpy_inline(part, group.result, sizeof(T));
    return part[0];
  }
  const uint first = exchange.lane() & ~(width - 1);
  for (uint i = 0; i < width; i++) part[i] = exchange.active(first + i) ? exchange.value(first + i) : identity;
  for (uint n = width / 2; n > 0; n /= 2) {
    for (uint i = 0; i < n; i++) part[i] = combine(part[i], part[i + n]);
  }
  if (width == msl::kSimdWidth) {  // the first lane to resume computes it for all
    __builtin_memcpy_inline(group.result, part, sizeof(T));
    group.reduced = true;
  }
  return part[0];
}

// The least and the greatest value of a scalar, or of a vector's elements.
template <class T>
constexpr T extreme(bool greatest) {
  if constexpr (is_floating_point_v<T>) {
    return greatest ? numeric_limits<T>::infinity() : -numeric_limits<T>::infinity();
  } else if constexpr (is_integral_v<T>) {
    return greatest ? numeric_limits<T>::max() : numeric_limits<T>::min();
  } else {
    return T(extreme<remove_cv_t<decltype(T{}[0] + T{}[0])>>(greatest));
  }
}

#define MSL_REDUCE(name, identity, combined)                                                                \
  template <class T>                                                                                        \
  inline T simd_##name(T value, Caller caller = Caller::here()) {                                           \
    return reduce<32>(value, identity, [](T a, T b) -> T { return combined; }, caller.site("simd_" #name)); \
  }                                                                                                         \
  template <class T>                                                                                        \
  inline T quad_##name(T value, Caller caller = Caller::here()) {                                           \
    return reduce<4>(value, identity, [](T a, T b) -> T { return combined; }, caller.site("quad_" #name));  \
  }
MSL_REDUCE(sum, T(0), a + b)
MSL_REDUCE(product, T(1), a* b)
MSL_REDUCE(max, extreme<T>(false), __builtin_elementwise_max(a, b))
MSL_REDUCE(min, extreme<T>(true), __builtin_elementwise_min(a, b))
MSL_REDUCE(and, T(~T(0)), a& b)
MSL_REDUCE(or, T(0), a | b)
MSL_REDUCE(xor, T(0), a ^ b)
#undef MSL_REDUCE

inline bool simd_any(bool value, Caller caller = Caller::here()) {
  return reduce<32>(int(value), 0, [](int a, int b) { return a | b; }, caller.site("simd_any"));
}
inline bool simd_all(bool value, Caller caller = Caller::here()) {
  return reduce<32>(int(value), 1, [](int a, int b) { return a & b; }, caller.site("simd_all"));
}
inline bool simd_is_first(Caller caller = Caller::here()) {
  Exchange<int> exchange(0, caller.site("simd_is_first"));
  return exchange.lane() == uint(__builtin_ctz(exchange.group().active));
}

// `source` is the lane read, of the `width` lanes around this one; `keeps` tells when a lane keeps its own value
// instead.
#define MSL_SHUFFLE(prefix, width, name, source, keeps)                      \
  template <class T>                                                         \
  inline T prefix##name(T value, ushort n, Caller caller = Caller::here()) { \
    Exchange<T> exchange(value, caller.site(#prefix #name));                 \
    const uint first = exchange.lane() & ~(width - 1u);                      \
    const uint lane = exchange.lane() - first;                               \
    return (keeps) ? value : exchange.checked(first + (source));             \
  }
#define MSL_SHUFFLES(prefix, width)                                          \
  MSL_SHUFFLE(prefix, width, shuffle, n, false)                              \
  MSL_SHUFFLE(prefix, width, broadcast, n, false)                            \
  MSL_SHUFFLE(prefix, width, shuffle_xor, lane ^ n, false)                   \
  MSL_SHUFFLE(prefix, width, shuffle_down, lane + n, lane + n >= width)      \
  MSL_SHUFFLE(prefix, width, shuffle_up, lane - n, lane < n)                 \
  MSL_SHUFFLE(prefix, width, shuffle_rotate_down, (lane + n) % width, false) \
  MSL_SHUFFLE(prefix, width, shuffle_rotate_up, (lane + width - n) % width, false)
MSL_SHUFFLES(simd_, 32)
MSL_SHUFFLES(quad_, 4)
#undef MSL_SHUFFLES
#undef MSL_SHUFFLE

template <class T>
inline T simd_broadcast_first(T value, Caller caller = Caller::here()) {
  Exchange<T> exchange(value, caller.site("simd_broadcast_first"));
  return exchange.value(uint(__builtin_ctz(exchange.group().active)));
}
// The lanes that a shift leaves empty take `fill` from the other end.
template <class T>
inline T simd_shuffle_and_fill_up(T value, T fill, ushort n, Caller caller = Caller::here()) {
  struct Pair {
    T value, fill;
  };
  Exchange<Pair> exchange({value, fill}, caller.site("simd_shuffle_and_fill_up"));
  const uint lane = exchange.lane();
  return lane < n ? exchange.checked(lane + 32 - n).fill : exchange.checked(lane - n).value;
}
template <class T>
inline T simd_shuffle_and_fill_down(T value, T fill, ushort n, Caller caller = Caller::here()) {
  struct Pair {
    T value, fill;
  };
  Exchange<Pair> exchange({value, fill}, caller.site("simd_shuffle_and_fill_down"));
  const uint lane = exchange.lane();
  return lane + n >= 32 ? exchange.checked(lane + n - 32).fill : exchange.checked(lane + n).value;
}

#define MSL_PREFIX(name, identity, op)                                                                                \
  template <class T>                                                                                                  \
  inline T simd_prefix_exclusive_##name(T value, Caller caller = Caller::here()) {                                    \
    Exchange<T> exchange(value, caller.site("simd_prefix_exclusive_" #name));                                         \
    T result = T(identity);                                                                                           \
    for (uint i = 0; i < exchange.lane(); i++) result = exchange.active(i) ? T(result op exchange.value(i)) : result; \
    return result;                                                                                                    \
  }                                                                                                                   \
  template <class T>                                                                                                  \
  inline T simd_prefix_inclusive_##name(T value, Caller caller = Caller::here()) {                                    \
    return T(simd_prefix_exclusive_##name(value, caller) op value);                                                   \
  }
MSL_PREFIX(sum, 0, +)
MSL_PREFIX(product, 1, *)
#undef MSL_PREFIX

}  // namespace metal

// The compiler's own builtins that MLX calls.
inline ushort __metal_get_thread_index_in_simdgroup(ushort) { return ushort(msl::current->builtins.lane); }
inline ushort __metal_get_simdgroup_size(ushort) { return msl::kSimdWidth; }
