// The instructions of a GPU that the shim is built on; tests replace this file to run the rest on a CPU.
#pragma once
#include "types.h"

namespace msl {

#define MSL_REGISTER(name) __nvvm_read_ptx_sreg_##name()
inline metal::uint3 thread_in_threadgroup() {
  return {uint(MSL_REGISTER(tid_x)), uint(MSL_REGISTER(tid_y)), uint(MSL_REGISTER(tid_z))};
}
inline metal::uint3 threadgroup_size() {
  return {uint(MSL_REGISTER(ntid_x)), uint(MSL_REGISTER(ntid_y)), uint(MSL_REGISTER(ntid_z))};
}
inline metal::uint3 threadgroup_in_grid() {
  return {uint(MSL_REGISTER(ctaid_x)), uint(MSL_REGISTER(ctaid_y)), uint(MSL_REGISTER(ctaid_z))};
}
inline metal::uint3 threadgroups() {
  return {uint(MSL_REGISTER(nctaid_x)), uint(MSL_REGISTER(nctaid_y)), uint(MSL_REGISTER(nctaid_z))};
}
inline uint lane() { return uint(MSL_REGISTER(laneid)); }
#undef MSL_REGISTER

// 32 bits of lane `from`, or of lane `own ^ mask`.
inline uint shuffle(uint value, uint from) { return uint(__nvvm_shfl_sync_idx_i32(~0u, int(value), int(from), 31)); }
inline uint shuffle_xor(uint value, uint mask) {
  return uint(__nvvm_shfl_sync_bfly_i32(~0u, int(value), int(mask), 31));
}
inline void wait_for_simdgroup() { __nvvm_bar_warp_sync(~0u); }
inline void wait_for_threadgroup() { __syncthreads(); }

inline float exp2(float x) { return __nvvm_ex2_approx_f(x); }
inline float log2(float x) { return __nvvm_lg2_approx_f(x); }
inline float rsqrt(float x) { return __nvvm_rsqrt_approx_f(x); }

}  // namespace msl
