// gated_norm: RMSNorm of each head's output, gated: what follows gated_delta in prefill.
//
//   out = norm * y * rsqrt(mean(y^2) + eps) * silu(z)      over the last axis; y, z, out: one float dtype; norm [D]
//
// Computed in float32, rounded once. On a GPU a composition of MLX's operations.
#pragma once

#include "ops/common.h"

namespace mlx_delta {

mx::array gated_norm(const mx::array& y, const mx::array& z, const mx::array& norm, float eps,
                     mx::StreamOrDevice stream);

}  // namespace mlx_delta
