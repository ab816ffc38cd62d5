// A whole gated-delta mixer for decoding: see ops/delta_mixer.cpp for the formula.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct DeltaMixerArgs {
  const void* projection;    // [B, T, q | k | v | z | b | a] of T
  const void* pending;       // [B, P, ..] likewise, of tokens before them; unused where P is 0
  const float* conv_weight;  // [C, 4]
  const float* A_log;        // [Hv]
  const float* dt_bias;      // [Hv]
  const float* norm;         // [Dv]
  const bool* mask;          // [B, T], or null
  const void* conv_in;       // [B, 3, C] of T
  void* conv_out;            // [B, 3, C] of T; may be conv_in
  float* delta_state;        // [B, Hv, Dv, Dk], updated
  void* y;                   // [B, T, Hv Dv] of T
  int64_t B, P, T, Hk, Hv, Dk, Dv;
  bool keep;  // the states are those after all tokens; else those after the pending ones
  float eps;
};

}  // namespace mlx_delta::cpu
