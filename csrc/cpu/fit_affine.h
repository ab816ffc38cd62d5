// The least-squares fit of every quantization group's scale and bias: see ops/fit_affine.cpp.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct FitAffineArgs {
  const void* weight;       // [rows, cols] of T
  const float* importance;  // [cols], positive
  const float* feedback;    // [cols, cols], what a column's error adds to those after it; nullptr: none
  const int* order;         // [cols]: the column at each place of importance and feedback, within groups; or nullptr
  uint32_t* packed;         // [rows, cols * bits / 32]
  bf16* scales;             // [rows, cols / group]
  bf16* biases;             // [rows, cols / group]
  float* errors;            // [rows, cols / group]: sum h (w - s q - b)^2, w with what was fed to it
  int64_t rows, cols;
  int bits, group_size;
};

}  // namespace mlx_delta::cpu
