// Affine quantization by least squares, for conversion: not a node of a graph, it works on evaluated arrays at once.
#pragma once

#include <tuple>

#include "ops/common.h"

namespace mlx_delta {

// weight [N, K], evaluated, row-contiguous, float32, float16 or bfloat16; importance float32 [K], positive. Per group
// of 32, 64 or 128 along K the s, b (bfloat16 values) and q in [0, 2^bits - 1] that minimise sum h_k (w_k - s q_k -
// b)^2 as mlx_delta.convert.fit describes it.
// Returns packed uint32 [N, K * bits / 32] (MLX's packing), scales and biases bfloat16 [N, K / group], and each
// group's error float32 [N, K / group].
std::tuple<mx::array, mx::array, mx::array, mx::array> fit_affine(const mx::array& weight, const mx::array& importance,
                                                                  int bits, int group_size);

}  // namespace mlx_delta
