// The second moments of a matrix's inputs, and their factors: see ops/moments.h.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct AddMomentsArgs {
  float* sums;     // [cols, cols]: x^T x is added to its upper triangle
  const float* x;  // [rows, cols]
  int64_t rows, cols;
};

struct FactorMomentsArgs {
  float* sums;          // [cols, cols], of which the upper triangle is read, and replaced by U without its diagonal
  const float* scales;  // [cols], by which the inputs are divided
  const int* order;     // [cols]: which input each row and column becomes; within blocks of 64
  float* diagonal;      // [cols]: D
  int64_t cols;
  float factor, damping;  // sums times factor are the moments; damping is a part of their mean diagonal
};

}  // namespace mlx_delta::cpu
