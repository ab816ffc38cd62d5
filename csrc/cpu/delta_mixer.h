// A whole gated-delta mixer for decoding: see ops/delta_mixer.cpp for the formula.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

inline constexpr int kMixerParts = 16;  // at most, of one call

// Sequences that go in step, each as many tokens: a batch, or one that has states of its own.
struct DeltaMixerPart {
  const void* pending;  // [B, P, ..] as the projection, of tokens before these; unused where P is 0
  const void* conv_in;  // [B, 3, C] of T
  void* conv_out;       // [B, 3, C] of T; may be conv_in
  float* delta_state;   // [B, Hv, Dv, Dk], updated
  int64_t first;        // its tokens are [first, first + B T) of all
  int64_t B, P, T;
  int64_t keep;  // whether the states are those after all tokens; else those after the pending ones
};

struct DeltaMixerArgs {
  const void* projection;    // [tokens, q | k | v | z | b | a] of T
  const float* conv_weight;  // [C, 4]
  const float* A_log;        // [Hv]
  const float* dt_bias;      // [Hv]
  const float* norm;         // [Dv]
  const bool* mask;          // [tokens], or null
  void* y;                   // [tokens, Hv Dv] of T
  int64_t Hk, Hv, Dk, Dv;
  int64_t parts;
  DeltaMixerPart part[kMixerParts];
  float eps;
};

}  // namespace mlx_delta::cpu
