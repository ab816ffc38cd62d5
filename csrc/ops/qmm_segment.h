// A matrix among the inputs of a primitive, as plans speak of it.
#pragma once

#include "gpu/plans/qmm.h"
#include "ops/matrix.h"
#include "ops/primitive.h"

namespace mlx_delta {

// next: the index of its first input, moved on to that of the next matrix.
inline gpu::QmmSegment qmm_segment(const Matrix& matrix, int& next) {
  const mx::Dtype type = matrix.quantized() ? matrix.scales->dtype() : matrix.weight.dtype();
  const gpu::QmmSegment segment{metal_type(type), matrix.bits, matrix.group_size, matrix.rows, next};
  next += matrix.input_count();
  return segment;
}

}  // namespace mlx_delta
