// y = epilogue((rmsnorm(x) or x) @ rows^T): see ops/qmm.cpp for the formula.
#pragma once

#include "cpu/matrix.h"

namespace mlx_delta::cpu {

inline constexpr int kMaxSegments = 8;

struct QmmArgs {
  const void* x;         // [M, K] of T
  const float* norm;     // [K], or null: no prologue
  const void* residual;  // [M, N] of T, or null
  void* y;               // [M, N] of T
  int64_t M;
  int64_t positions;  // rows of x of one sequence: M is a multiple of it
  int64_t K;
  int64_t N;  // columns of y
  float eps;
  bool swiglu;  // segments are {gate, up}; y = silu(gate) * up
  int segment_count;
  MatrixView segments[kMaxSegments];
  bool float_y = false;  // y is [M, N] of float, not of T
  bool fixed_x = false;  // x, of any T, may be taken in fixed point, as that of bfloat16 is
};

}  // namespace mlx_delta::cpu
