// <metal_stdlib> for Apple's GPU by way of Mesa: tests/nvptx/shim, and a reduction is one instruction.
#pragma once
#include "simdgroup_matrix.h"

namespace metal {
template <>
inline float simd_sum(float value) {
  return msl::opencl_sum(value);
}
template <>
inline int simd_sum(int value) {
  return msl::opencl_sum_int(value);
}
template <>
inline float simd_max(float value) {
  return msl::opencl_max(value);
}
template <>
inline float simd_min(float value) {
  return msl::opencl_min(value);
}

// A stand-in, for nothing runs: an M1 has one instruction for it, of the same six operands and two results, which Mesa
// does not know. By shuffles, as where it runs, it takes 32 of them and 30 registers that the instruction does not.
template <>
inline void simdgroup_multiply_accumulate(thread simdgroup_matrix<float>& d, const thread simdgroup_matrix<float>& a,
                                          const thread simdgroup_matrix<float>& b,
                                          const thread simdgroup_matrix<float>& c) {
  const vec<float, 2> of_a = a.elements, of_b = b.elements, of_c = c.elements;
  d.elements[0] = __builtin_fmaf(of_a[0], of_b[0], __builtin_fmaf(of_a[1], of_b[1], of_c[0]));
  d.elements[1] = __builtin_fmaf(of_a[0], of_b[1], __builtin_fmaf(of_a[1], of_b[0], of_c[1]));
}
}  // namespace metal
