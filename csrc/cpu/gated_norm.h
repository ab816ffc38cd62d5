// norm * rms(y) * silu(z), row by row: see ops/gated_norm.h.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct GatedNormArgs {
  const void *y, *z;  // [rows, D] of T
  const float* norm;  // [D]
  void* out;          // [rows, D] of T
  int64_t rows, D;
  float eps;
};

}  // namespace mlx_delta::cpu
