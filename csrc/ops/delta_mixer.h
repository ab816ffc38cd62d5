// delta_mixer: everything between the two projections of a gated-delta layer, for decoding (T small).
//
//   projection = [q | k | v | z | b | a]                     [B, T, 2 Hk Dk + 2 Hv Dv + 2 Hv]
//   q, k, v = conv1d([q | k | v])                            as ops/conv1d.h
//   y = gated_delta(q, k, v, a, b)                           as ops/gated_delta.h, token by token
//   y = norm * y * rsqrt(mean(y^2) + eps) * silu(z)          per value head
//
// Returns y [B, T, Hv Dv] and the new conv state [B, 3, C] and delta state float32 [B, Hv, Dv, Dk], both updated in
// place where possible; C = 2 Hk Dk + Hv Dv. projection, conv state and y: one float dtype; nothing between is rounded.
// mask [B, T]: a token whose mask is false is not there: it leaves both states alone, its y is 0.
#pragma once

#include <tuple>

#include "ops/common.h"

namespace mlx_delta {

std::tuple<mx::array, mx::array, mx::array> delta_mixer(
    const mx::array& projection, const mx::array& conv_weight, const mx::array& A_log, const mx::array& dt_bias,
    const mx::array& norm, const std::optional<mx::array>& conv_state, const std::optional<mx::array>& delta_state,
    int key_heads, int key_dim, float eps, const std::optional<mx::array>& mask, mx::StreamOrDevice stream);

}  // namespace mlx_delta
