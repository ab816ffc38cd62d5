// Causal attention over the KV cache, times the sigmoid of the gate: see ops/attention.cpp for the formula.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

struct AttentionArgs {
  const void* q;           // [B, Hq, T, D] of T
  const void* projection;  // [B, T, width] of T: head h's gate is at h * 2D + D
  const void* keys;        // [B, Hkv, S, D] of T, or in 8 bits [B, Hkv, S, kv_row_bytes(D)]
  const void* values;      // likewise
  const int32_t* start;    // [B] first row of the cache that belongs to the sequence, or null: 0
  void* y;                 // [B, T, Hq D] of T
  int64_t B, T, Hq, Hkv, D, S;
  int64_t length;  // valid rows of the cache, the T new ones included
  int64_t width;
  float scale;
  bool eight_bits;  // keys and values
};

}  // namespace mlx_delta::cpu
