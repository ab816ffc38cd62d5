// route and experts as compositions of MLX's own operations, whose kernels use the matrix units of new chips: what they
// are on a GPU.
#pragma once

#include <vector>

#include "ops/matrix.h"

namespace mlx_delta {

// What route computes (ops/route.cpp), its arguments already checked: {chosen, weights}.
std::vector<mx::array> route_mlx(const mx::array& x, const Matrix& router, const Matrix& shared_gate,
                                 const mx::array& norm, int chosen, float eps, mx::Stream stream);

// What experts computes (ops/experts.cpp), its arguments already checked. x's dtype is rounded to after the norm, after
// each product and at the end.
mx::array experts_mlx(const mx::array& x, const mx::array& chosen, const mx::array& weights,
                      const std::vector<Matrix>& matrices, const std::vector<Matrix>& shared, const mx::array& norm,
                      float eps, mx::Stream stream);

}  // namespace mlx_delta
