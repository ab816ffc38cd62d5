// The gated delta rule, in float: see ops/gated_delta.cpp for the formula.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct GatedDeltaArgs {
  Rows q, k;             // [B T, Hk Dk] of T
  Rows v;                // [B T, Hv Dv]
  Rows a, b;             // [B T, Hv]
  const float* A_log;    // [Hv]
  const float* dt_bias;  // [Hv]
  const bool* mask;      // [B, T], or null
  float* state;          // [B, Hv, Dv, Dk], updated
  void* y;               // [B, T, Hv, Dv] of T
  int64_t B, T, Hk, Hv, Dk, Dv;
};

}  // namespace mlx_delta::cpu
