// qmm: x times one or more row-concatenated weight matrices, with the work around it fused in.
//
//   h = norm ? x * rsqrt(mean(x^2) + eps) * norm : x                         [.., K]
//   y = concat_s(h @ W_s^T)                                                  [.., N]   N = sum of the rows
//   y = silu(h @ W_0^T) * (h @ W_1^T)      with activation = "swiglu"        [.., N]   segments = {gate, up}
//   y = y + residual                       with residual                     [.., N]
//
// x: float32, float16 or bfloat16; so are y and residual. Segments may differ in width and dtype. Sums are float32;
// x is never rounded. A row of y has the same bits whatever the number of rows of x.
#pragma once

#include "ops/matrix.h"

namespace mlx_delta {

mx::array qmm(const mx::array& x, const std::vector<Matrix>& segments, const std::optional<mx::array>& norm, float eps,
              const std::optional<mx::array>& residual, const std::optional<std::string>& activation,
              mx::StreamOrDevice stream);

}  // namespace mlx_delta
