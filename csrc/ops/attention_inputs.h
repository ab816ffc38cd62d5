// What attention_prepare and attention_rows are given, checked.
#pragma once

#include <array>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace mlx_delta {

namespace mx = mlx::core;

struct Rope {
  float theta;
  int dim;
  std::array<int, 3> sections;
};

struct AttentionHeads {
  int Hq, Hkv, D;
};

// Checks what all tokens share, by the keys of any of them: projection [.., .., (2 Hq + 2 Hkv) D], norms [D], the rope.
AttentionHeads attention_heads(const char* op, const mx::array& projection, const mx::array& q_norm,
                               const mx::array& k_norm, const mx::array& keys, const Rope& rope, float eps,
                               mx::Stream s);

// Checks keys and values of B sequences of those heads, for T tokens from offset on; name: the offset's.
void check_room(const char* op, const mx::array& keys, const mx::array& values, const AttentionHeads& heads,
                mx::Dtype dtype, int B, int T, int offset, const char* name);

// int of `shape`, or [3, *shape] (T, H, W) -> int32 [3, *shape]
mx::array position_axes(const char* op, const mx::array& positions, const mx::Shape& shape, mx::Stream s);

}  // namespace mlx_delta
