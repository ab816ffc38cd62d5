// conv1d: depthwise causal convolution of width 4 over T tokens, then SiLU.
//
//   h = concat(state, x)                                                     [B, 3 + T, C]
//   y[b, t, c] = silu(sum_j weight[c, j] h[b, t + j, c])                     [B, T, C]
//   new state = the last three rows of h                                     [B, 3, C], oldest first
//
// mask [B, T]: a token whose mask is false is not there: the window skips it, its y is 0.
// x, state, y: one float dtype. Sums are float32. Without a state: zeros. The state is updated in place where possible.
#pragma once

#include <utility>

#include "ops/common.h"

namespace mlx_delta {

std::pair<mx::array, mx::array> conv1d(const mx::array& x, const mx::array& weight,
                                       const std::optional<mx::array>& state, const std::optional<mx::array>& mask,
                                       mx::StreamOrDevice stream);

// weight as float32 [C, 4]; checkpoints also store [C, 1, 4] and [C, 4, 1]. For the ops that convolve.
mx::array conv_taps(const char* op, const mx::array& weight, int C, mx::Stream stream);

// state, or zeros of [B, 3, C]; checked. For the ops that carry one.
mx::array conv_state(const char* op, const std::optional<mx::array>& state, int B, int C, mx::Dtype dtype,
                     mx::Stream stream);

}  // namespace mlx_delta
