// embedding: rows of a (quantized) table.
//
//   y[..] = W[tokens[..]]        tokens: integers [..]; y: dtype [.., K]
//
// A token outside [0, N) gives a row of NaN.
#pragma once

#include "ops/matrix.h"

namespace mlx_delta {

mx::array embedding(const mx::array& tokens, const Matrix& table, mx::Dtype dtype, mx::StreamOrDevice stream);

}  // namespace mlx_delta
