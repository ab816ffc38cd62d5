// qmm of many rows on a GPU: a composition of MLX's own operations, whose kernels use the matrix units of new chips.
#pragma once

#include "ops/matrix.h"

namespace mlx_delta {

// What qmm computes (ops/qmm.cpp), its arguments already checked. x's dtype is rounded to after the norm, after each
// product and at the end.
mx::array qmm_mlx(const mx::array& x, const std::vector<Matrix>& segments, const std::optional<mx::array>& norm,
                  float eps, const std::optional<mx::array>& residual, bool swiglu, mx::Stream stream);

}  // namespace mlx_delta
