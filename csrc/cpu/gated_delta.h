// The gated delta rule, in float: see ops/gated_delta.h for the formula.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct GatedDeltaArgs {
  const void* q;         // [B, T, Hk, Dk] of T
  const void* k;         // [B, T, Hk, Dk]
  const void* v;         // [B, T, Hv, Dv]
  const void* a;         // [B, T, Hv]
  const void* b;         // [B, T, Hv]
  const float* A_log;    // [Hv]
  const float* dt_bias;  // [Hv]
  const bool* mask;      // [B, T], or null
  float* state;          // [B, Hv, Dv, Dk], updated
  void* y;               // [B, T, Hv, Dv] of T
  int64_t B, T, Hk, Hv, Dk, Dv;
};

}  // namespace mlx_delta::cpu
