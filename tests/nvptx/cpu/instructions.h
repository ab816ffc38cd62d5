// What shim/instructions.h has, by the emulator's fibers.
#pragma once
#include "../../msl/shim/types.h"

namespace msl {

inline metal::uint3 vector_of(const uint32_t value[3]) { return {value[0], value[1], value[2]}; }
inline metal::uint3 thread_in_threadgroup() { return vector_of(current->builtins.thread_in_threadgroup); }
inline metal::uint3 threadgroup_size() { return vector_of(grid.threadgroup_size); }
inline metal::uint3 threadgroup_in_grid() { return vector_of(current->builtins.threadgroup_in_grid); }
inline metal::uint3 threadgroups() { return vector_of(grid.threadgroups); }

inline uint lane() { return current->builtins.lane; }

inline uint shuffle(uint value, uint from) {
  auto* slots = simdgroups[current->builtins.simdgroup].slots[++current->exchanges & 1];
  __builtin_memcpy(slots[current->builtins.lane], &value, sizeof(value));
  wait(kWaitsForSimdgroup, {"instructions.h", __LINE__, 1, "shuffle"}, 0);
  uint result;
  __builtin_memcpy(&result, slots[from], sizeof(result));
  return result;
}
inline uint shuffle_xor(uint value, uint mask) { return shuffle(value, current->builtins.lane ^ mask); }
inline void wait_for_simdgroup() { wait(kWaitsForSimdgroup, {"instructions.h", __LINE__, 1, "bar.warp.sync"}, 3); }
inline void wait_for_threadgroup() { wait(kWaitsForThreadgroup, {"instructions.h", __LINE__, 1, "bar.sync"}, 3); }

inline float exp2(float x) { return __builtin_exp2f(x); }
inline float log2(float x) { return __builtin_log2f(x); }
inline float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }

}  // namespace msl
