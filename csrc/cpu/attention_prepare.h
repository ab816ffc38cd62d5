// Query/key RMSNorm, rotary embedding and append to the KV cache: see ops/attention_prepare.cpp for the formula.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct AttentionPrepareArgs {
  const void* projection;    // [B, T, (q | gate) per head, k, v] of T
  const float* q_norm;       // [D]
  const float* k_norm;       // [D]
  const int32_t* positions;  // [3, B, T] (T, H, W), or null: offset + t for all three
  void* q;                   // [B, Hq, T, D] of T
  void* keys;                // [B, Hkv, S, D] of T: rows offset .. offset + T are written
  void* values;              // [B, Hkv, S, D] of T
  int64_t B, T, Hq, Hkv, D, S;
  int64_t offset;
  int rope_dim;
  int sections[3];  // how many of the rope_dim / 2 frequencies follow the T, H and W position
  float rope_theta;
  float eps;
};

}  // namespace mlx_delta::cpu
