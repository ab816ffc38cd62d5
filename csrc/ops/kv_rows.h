// Keys and values of a cache as arguments of ops: of the activations' dtype, or in 8 bits (kv_layout.h).
#pragma once

#include <string>
#include <utility>

#include "kv_layout.h"
#include "ops/checks.h"

namespace mlx_delta {

inline bool in_eight_bits(const mx::array& rows) { return rows.dtype() == mx::uint8; }

// [B, Hkv, S, D] of `dtype`, or uint8 [B, Hkv, S, kv_row_bytes(D)].
inline void check_kept(const char* op, const mx::array& keys, const mx::array& values, int B, int D, mx::Dtype dtype) {
  check_rank(op, "keys", keys, 4, "[B, Hkv, S, D]");
  check_shape(op, "keys", keys, {B, -1, -1, in_eight_bits(keys) ? int(kv_row_bytes(D)) : D});
  check_shape(op, "values", values, keys.shape());
  for (const auto& [name, a] : {std::pair{"keys", &keys}, {"values", &values}})
    check_same_dtype(op, name, *a, in_eight_bits(keys) ? mx::uint8 : dtype);
}

}  // namespace mlx_delta
