// attention_prepare: from the projection of an attention layer to its query, with keys and values in the cache.
//
//   projection = [(q | gate) per query head | k | v]         [B, T, (2 Hq + 2 Hkv) D]
//   q = rope(q * rsqrt(mean(q^2) + eps) * q_norm)            per head; k likewise with k_norm
//   keys[:, :, offset : offset + T] = k, values likewise     keys, values [B, Hkv, S, D]
//
// rope turns the pairs (i, i + rope_dim / 2) of the first rope_dim values of a head by position * theta^(-2i/rope_dim).
// positions int [B, T], or [3, B, T] for M-RoPE (T, H, W; interleaved: frequency i follows H where i % 3 = 1 and
// i / 3 < sections[1], W where i % 3 = 2 and i / 3 < sections[2], else T); none: offset + t.
// Returns q [B, Hq, T, D], keys, values. The cache is updated in place where possible. One float dtype.
#pragma once

#include <array>
#include <tuple>

#include "ops/common.h"

namespace mlx_delta {

struct Rope {
  float theta;
  int dim;
  std::array<int, 3> sections;
};

std::tuple<mx::array, mx::array, mx::array> attention_prepare(const mx::array& projection, const mx::array& q_norm,
                                                              const mx::array& k_norm, const mx::array& keys,
                                                              const mx::array& values, int offset, const Rope& rope,
                                                              float eps, const std::optional<mx::array>& positions,
                                                              mx::StreamOrDevice stream);

}  // namespace mlx_delta
