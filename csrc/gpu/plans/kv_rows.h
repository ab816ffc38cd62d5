// What the kernels over a cache have in common: the type that stands for its rows (metal/kv_row.h).
#pragma once

#include "gpu/launch.h"
#include "kv_layout.h"

namespace mlx_delta::gpu {

// In 8 bits, groups with a scale are whole.
inline void check_cached_head_dim(const char* op, int D, bool eight_bits) {
  check_head_dims(op, {D});
  if (eight_bits && D % kKvGroup != 0)
    throw std::invalid_argument(std::string(op) + ": head dim: expected a multiple of " + std::to_string(kKvGroup) +
                                " on a GPU for keys and values in 8 bits, found " + std::to_string(D));
}

inline std::string cached_type(const std::string& type, bool eight_bits) { return eight_bits ? "char" : type; }

}  // namespace mlx_delta::gpu
