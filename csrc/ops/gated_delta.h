// gated_delta: the gated delta rule (Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464), per value
// head h with key head h // (Hv / Hk), state S [Dv, Dk]:
//
//   q = q * rsqrt(sum(q^2) + 1e-6) * Dk^-0.5,  k = k * rsqrt(sum(k^2) + 1e-6)
//   g = exp(-exp(A_log) * softplus(a + dt_bias)),  beta = sigmoid(b)
//   S = g S;  S += beta (v - S k) k^T;  y = S q                              for each token
//
// q, k [B, T, Hk, Dk]; v, y [B, T, Hv, Dv]; a, b [B, T, Hv]: one float dtype. A_log, dt_bias [Hv]: any float dtype.
// state float32 [B, Hv, Dv, Dk] (none: zeros), updated in place where possible. T > 16 runs in chunks of 64 tokens,
// counted from the first token that is there.
// mask [B, T]: a token whose mask is false is not there: it leaves the state alone, its y is 0.
#pragma once

#include <utility>

#include "ops/common.h"

namespace mlx_delta {

std::pair<mx::array, mx::array> gated_delta(const mx::array& q, const mx::array& k, const mx::array& v,
                                            const mx::array& a, const mx::array& b, const mx::array& A_log,
                                            const mx::array& dt_bias, const std::optional<mx::array>& state,
                                            const std::optional<mx::array>& mask, mx::StreamOrDevice stream);

// state, or zeros of [B, Hv, Dv, Dk]; checked. For the ops that carry one.
mx::array delta_state(const char* op, const std::optional<mx::array>& state, int B, int Hv, int Dv, int Dk,
                      mx::Stream stream);

// Hv is a multiple of Hk, and the float parameters A_log and dt_bias are [Hv].
void check_delta_heads(const char* op, int Hk, int Hv, const mx::array& A_log, const mx::array& dt_bias);

}  // namespace mlx_delta
