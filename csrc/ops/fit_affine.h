// Affine quantization by least squares, for conversion: not a node of a graph, it works on evaluated arrays at once.
#pragma once

#include <tuple>

#include "ops/common.h"

namespace mlx_delta {

// weight [N, K], evaluated, row-contiguous, float32, float16 or bfloat16; importance float32 [K], positive. Per group
// of 32, 64 or 128 along K the s, b (bfloat16 values) and q in [0, 2^bits - 1] that minimise sum h_k (w_k - s q_k -
// b)^2 as mlx_delta.conversion.fit describes it.
// feedback (float32 [K, K]) and order (int32 [K], within groups): importance and feedback are by place, and order says
// which column is there; feedback's upper triangle is U of factor_moments, importance its D. Columns are rounded by
// place, each after the errors of those before it, times U, were added to it, and errors add up to trace(dW H dW^T).
// Returns packed uint32 [N, K * bits / 32] (MLX's packing), scales and biases bfloat16 [N, K / group], and each
// group's error float32 [N, K / group].
std::tuple<mx::array, mx::array, mx::array, mx::array> fit_affine(const mx::array& weight, const mx::array& importance,
                                                                  int bits, int group_size,
                                                                  const std::optional<mx::array>& feedback = {},
                                                                  const std::optional<mx::array>& order = {});

}  // namespace mlx_delta
