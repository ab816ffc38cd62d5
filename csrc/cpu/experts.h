// The experts that each token was routed to, and the shared one: see ops/experts.cpp for the formula.
#pragma once

#include "cpu/matrix.h"

namespace mlx_delta::cpu {

struct ExpertsArgs {
  const void* x;           // [M, K] of T
  const uint32_t* chosen;  // [M, k]
  const float* weights;    // [M, k + 1]
  const float* norm;       // [K]
  void* y;                 // [M, K] of T
  int64_t M;
  int64_t positions;  // rows of x of one sequence: M is a multiple of it
  int64_t K;
  int64_t k;
  int64_t E;
  float eps;
  MatrixView experts[3];  // gate, up [E * I, K]; down [E * K, I]
  MatrixView shared[3];   // gate, up [Is, K]; down [K, Is]
};

}  // namespace mlx_delta::cpu
