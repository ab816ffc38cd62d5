// The least-squares fit of every quantization group's scale and bias: see ops/fit_affine.h.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct FitAffineArgs {
  const void* weight;       // [rows, cols] of T
  const float* importance;  // [cols], positive
  uint32_t* packed;         // [rows, cols * bits / 32]
  bf16* scales;             // [rows, cols / group]
  bf16* biases;             // [rows, cols / group]
  float* errors;            // [rows, cols / group]: sum h (w - s q - b)^2
  int64_t rows, cols;
  int bits, group_size;
};

}  // namespace mlx_delta::cpu
