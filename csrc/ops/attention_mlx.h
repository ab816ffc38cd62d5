// attention of many new tokens on a GPU: MLX's own kernels, which tile queries, with the output gate after them.
#pragma once

#include <optional>

#include "mlx/array.h"
#include "mlx/utils.h"

namespace mlx_delta {

namespace mx = mlx::core;

// What attention computes (ops/attention.cpp), its arguments already checked. q's dtype is rounded to between the
// steps.
mx::array attention_mlx(const mx::array& q, const mx::array& projection, const mx::array& keys, const mx::array& values,
                        int length, float scale, const std::optional<mx::array>& start, mx::Stream stream);

}  // namespace mlx_delta
