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
}  // namespace metal
