// Causal attention over the KV cache, times the sigmoid of the gate: see ops/attention.cpp for the formula.
#pragma once

#include "cpu/kv_parts.h"
#include "cpu/types.h"

namespace mlx_delta::cpu {

struct AttentionArgs {
  const void* q;           // of T, of each part [B, Hq, T, D], parts one after the other
  const void* projection;  // [tokens, width] of T: head h's gate is at h * 2D + D
  const int32_t* start;    // [B] first row of the cache that belongs to the sequence, of one part alone, or null: 0
  void* y;                 // [tokens, Hq D] of T
  int64_t Hq, Hkv, D;
  int64_t width;
  float scale;
  bool eight_bits;  // keys and values
  bool few;         // whether tokens have the bits of each alone; else, as a prompt's, they go by tiles: one part
  int64_t parts;
  KvPart part[kKvParts];
};

}  // namespace mlx_delta::cpu
