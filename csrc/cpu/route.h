// The experts of each token and their weights: see ops/route.cpp for the formula.
#pragma once

#include "cpu/matrix.h"

namespace mlx_delta::cpu {

struct RouteArgs {
  const void* x;      // [M, K] of T
  const float* norm;  // [K]
  uint32_t* chosen;   // [M, k]
  float* weights;     // [M, k + 1]
  int64_t M;
  int64_t positions;  // rows of x of one sequence: M is a multiple of it
  int64_t K;
  int64_t k;
  float eps;
  MatrixView router;       // [E, K]
  MatrixView shared_gate;  // [1, K]
};

}  // namespace mlx_delta::cpu
