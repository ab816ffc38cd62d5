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
  void* keys;                // [B, Hkv, S, D] of T, or in 8 bits [B, Hkv, S, kv_row_bytes(D)]
  void* values;              // likewise: rows offset .. offset + T of both are written
  int64_t B, T, Hq, Hkv, D, S;
  int64_t offset;
  int rope_dim;
  int sections[3];  // how many of the rope_dim / 2 frequencies follow the T, H and W position
  float rope_theta;
  float eps;
  bool eight_bits;  // keys and values
};

}  // namespace mlx_delta::cpu
