// Sequences whose keys and values attention_prepare and attention are given: a batch, or several with arrays of their
// own.
#pragma once

#include <cstdint>

namespace mlx_delta::cpu {

inline constexpr int kKvParts = 16;  // at most, of one call

// Sequences that go in step, each T new tokens.
struct KvPart {
  void* keys;     // [B, Hkv, S, D] of the activations' dtype, or in 8 bits [B, Hkv, S, kv_row_bytes(D)]
  void* values;   // likewise
  int64_t first;  // its new tokens are [first, first + B T) of all
  int64_t B, T, S;
  int64_t offset;  // tokens before the new ones

  int64_t length() const { return offset + T; }  // valid rows, the T new ones included
};

}  // namespace mlx_delta::cpu
