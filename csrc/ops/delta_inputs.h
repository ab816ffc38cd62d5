// Inputs that the ops of a gated-delta layer share, checked: convolution taps, states, gates.
#pragma once

#include <optional>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace mlx_delta {

namespace mx = mlx::core;

// weight as float32 [C, 4]; checkpoints also store [C, 1, 4] and [C, 4, 1].
mx::array conv_taps(const char* op, const mx::array& weight, int C, mx::Stream stream);

// state, or zeros of [B, 3, C]; checked.
mx::array conv_state(const char* op, const std::optional<mx::array>& state, int B, int C, mx::Dtype dtype,
                     mx::Stream stream);

// state, or zeros of [B, Hv, Dv, Dk]; checked.
mx::array delta_state(const char* op, const std::optional<mx::array>& state, int B, int Hv, int Dv, int Dk,
                      mx::Stream stream);

// Hv is a multiple of Hk, and the float parameters A_log and dt_bias are [Hv].
void check_delta_heads(const char* op, int Hk, int Hv, const mx::array& A_log, const mx::array& dt_bias);

}  // namespace mlx_delta
