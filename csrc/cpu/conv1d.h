// Depthwise causal convolution of width 4 with SiLU: see ops/conv1d.cpp.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

inline constexpr int kConvWidth = 4;
inline constexpr int kConvState = kConvWidth - 1;

struct Conv1dArgs {
  Rows x;                // [B T, C] of T
  const float* weight;   // [C, 4], the newest token's weight last
  const bool* mask;      // [B, T], or null
  const void* state_in;  // [B, 3, C] of T, oldest first
  void* state_out;       // [B, 3, C] of T; may be state_in; null: nobody wants it
  void* y;               // [B, T, C] of T; the mixer, which keeps y in float, leaves it null
  int64_t B;
  int64_t T;
  int64_t C;
};

}  // namespace mlx_delta::cpu
