// norm * rms(y) * silu(z), head by head: see ops/gated_norm.cpp.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct GatedNormArgs {
  const void* y;      // [rows, heads, D] of T
  Rows z;             // [rows, heads D] of T
  const float* norm;  // [D]
  void* out;          // [rows, heads, D] of T
  int64_t rows, heads, D;
  float eps;
};

}  // namespace mlx_delta::cpu
