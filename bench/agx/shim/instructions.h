// The instructions of a GPU that tests/nvptx/shim is built on, as OpenCL's functions in SPIR-V, of which Mesa makes
// AGX's own.
#pragma once
#include "types.h"

namespace msl {

#define FUNCTION(type, name, mangled, arguments, ...) \
  extern "C" type name arguments __asm__(mangled) __attribute__((__VA_ARGS__))
FUNCTION(ulong, opencl_local_id, "_Z12get_local_idj", (uint), const);
FUNCTION(ulong, opencl_local_size, "_Z14get_local_sizej", (uint), const);
FUNCTION(ulong, opencl_group_id, "_Z12get_group_idj", (uint), const);
FUNCTION(ulong, opencl_num_groups, "_Z14get_num_groupsj", (uint), const);
FUNCTION(uint, opencl_lane, "_Z22get_sub_group_local_idv", (), const);
FUNCTION(uint, opencl_simdgroup, "_Z16get_sub_group_idv", (), const);
FUNCTION(void, opencl_barrier, "_Z7barrierj", (uint), convergent);
FUNCTION(void, opencl_simdgroup_barrier, "_Z17sub_group_barrierj", (uint), convergent);
FUNCTION(uint, opencl_shuffle, "_Z17sub_group_shufflejj", (uint, uint), convergent, const);
FUNCTION(uint, opencl_broadcast, "_Z19sub_group_broadcastjj", (uint, uint), convergent, const);
FUNCTION(float, opencl_sum, "_Z20sub_group_reduce_addf", (float), convergent, const);
FUNCTION(int, opencl_sum_int, "_Z20sub_group_reduce_addi", (int), convergent, const);
FUNCTION(float, opencl_max, "_Z20sub_group_reduce_maxf", (float), convergent, const);
FUNCTION(float, opencl_min, "_Z20sub_group_reduce_minf", (float), convergent, const);
FUNCTION(float, opencl_exp2, "_Z11native_exp2f", (float), const);
FUNCTION(float, opencl_log2, "_Z11native_log2f", (float), const);
FUNCTION(float, opencl_rsqrt, "_Z12native_rsqrtf", (float), const);
FUNCTION(float, opencl_sin, "_Z10native_sinf", (float), const);
FUNCTION(float, opencl_cos, "_Z10native_cosf", (float), const);
#undef FUNCTION

#define VECTOR(name) {uint(name(0)), uint(name(1)), uint(name(2))}
inline metal::uint3 thread_in_threadgroup() { return VECTOR(opencl_local_id); }
inline metal::uint3 threadgroup_size() { return VECTOR(opencl_local_size); }
inline metal::uint3 threadgroup_in_grid() { return VECTOR(opencl_group_id); }
inline metal::uint3 threadgroups() { return VECTOR(opencl_num_groups); }
#undef VECTOR
inline uint lane() { return opencl_lane(); }
inline uint simdgroup() { return opencl_simdgroup(); }

inline uint shuffle(uint value, uint from) { return opencl_shuffle(value, from); }
// A stand-in, for nothing runs: AGX has one instruction for it, which Mesa does not use (it makes four shuffles and four
// selections), and a broadcast is one of the same price.
inline uint shuffle_xor(uint value, uint mask) { return opencl_broadcast(value, mask); }
inline void wait_for_simdgroup() { opencl_simdgroup_barrier(1); }  // 1: local memory
inline void wait_for_threadgroup() { opencl_barrier(1); }

inline float exp2(float x) { return opencl_exp2(x); }
inline float log2(float x) { return opencl_log2(x); }
inline float rsqrt(float x) { return opencl_rsqrt(x); }

}  // namespace msl
