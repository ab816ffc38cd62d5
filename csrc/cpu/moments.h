// The second moments of a matrix's inputs, and their factors: see ops/moments.cpp.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct AddMomentsArgs {
  float* sums;     // [outputs, cols]: y^T x is added; without y x^T x, to the upper triangle
  const float* x;  // [rows, cols]
  const float* y;  // [rows, outputs], or nullptr
  int64_t rows, cols, outputs;
};

struct FactorMomentsArgs {
  float* sums;       // [cols, cols], of which the upper triangle is read, and replaced by U without its diagonal
  const int* order;  // [cols]: which input each row and column becomes; within blocks of 64
  float* diagonal;   // [cols]: D
  int64_t cols;
  float factor, damping;  // sums times factor are the moments; damping is added to their diagonal
};

struct SolveMomentsArgs {
  float* values;          // [rows, cols], by column; times the moments' inverse when done
  const float* upper;     // [cols, cols]: U, by place
  const float* diagonal;  // [cols]: D, by place
  const int* order;       // [cols]: the column at each place
  int64_t rows, cols;
};

}  // namespace mlx_delta::cpu
