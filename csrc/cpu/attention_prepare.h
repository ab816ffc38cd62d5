// Query/key RMSNorm, rotary embedding and append to the KV cache: see ops/attention_prepare.cpp for the formula.
#pragma once

#include "cpu/kv_parts.h"
#include "cpu/types.h"

namespace mlx_delta::cpu {

struct AttentionPrepareArgs {
  const void* projection;    // [tokens, (q | gate) per head, k, v] of T
  const float* q_norm;       // [D]
  const float* k_norm;       // [D]
  const int32_t* positions;  // [3, tokens] (T, H, W), or null: offset + t for all three
  void* q;                   // of T, of each part [B, Hq, T, D], parts one after the other
  int64_t Hq, Hkv, D;
  int64_t tokens;  // of `positions`
  int rope_dim;
  int sections[3];  // how many of the rope_dim / 2 frequencies follow the T, H and W position
  float rope_theta;
  float eps;
  bool eight_bits;  // keys and values
  int64_t parts;
  KvPart part[kKvParts];  // rows offset .. offset + T of their keys and values are written
};

}  // namespace mlx_delta::cpu
