// Atomics: fibers switch at barriers only, so plain accesses are atomic. The checker hears of each through
// atomic_access.
#pragma once
#include "simdgroup.h"

namespace metal {

enum memory_order { memory_order_relaxed };

template <class T>
struct atomic {
  T value;
};
typedef atomic<uint> atomic_uint;
typedef atomic<int> atomic_int;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

// The value behind an atomic of any address space, announced to the checker and then reached through a generic pointer.
template <class P>
inline auto& reach(P pointer, bool write, const msl::Site& site) {
  using T = plain_t<decltype(pointer->value)>;
  T* address = (T*)(uintptr_t)pointer;
  msl::atomic_access(address, sizeof(T), write, site);
  return *address;
}

template <class P>
inline auto atomic_load_explicit(P object, memory_order, Caller caller = Caller::here()) {
  auto value = reach(object, false, caller.site("atomic_load"));
  return value;
}
template <class P, class V>
inline void atomic_store_explicit(P object, V value, memory_order, Caller caller = Caller::here()) {
  auto& target = reach(object, true, caller.site("atomic_store"));
  target = plain_t<decltype(target)>(value);
}

#define MSL_ATOMIC(name, combined)                                                                          \
  template <class P, class V>                                                                               \
  inline auto atomic_##name##_explicit(P object, V operand, memory_order, Caller caller = Caller::here()) { \
    auto& target = reach(object, true, caller.site("atomic_" #name));                                       \
    using T = plain_t<decltype(target)>;                                                                    \
    const T a = target, b = T(operand);                                                                     \
    target = T(combined);                                                                                   \
    return a;                                                                                               \
  }
MSL_ATOMIC(exchange, b)
MSL_ATOMIC(fetch_add, a + b)
MSL_ATOMIC(fetch_sub, a - b)
MSL_ATOMIC(fetch_max, a > b ? a : b)
MSL_ATOMIC(fetch_min, a < b ? a : b)
MSL_ATOMIC(fetch_and, a& b)
MSL_ATOMIC(fetch_or, a | b)
MSL_ATOMIC(fetch_xor, a ^ b)
#undef MSL_ATOMIC

template <class P, class V>
inline bool atomic_compare_exchange_weak_explicit(P object, thread V* expected, V desired, memory_order, memory_order,
                                                  Caller caller = Caller::here()) {
  auto& target = reach(object, true, caller.site("atomic_compare_exchange_weak"));
  const bool equal = __builtin_memcmp(&target, expected, sizeof(V)) == 0;
  if (equal) target = desired;
  if (!equal) *expected = target;
  return equal;
}

}  // namespace metal
