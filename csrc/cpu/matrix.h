// A weight matrix [rows, cols] in memory, as the kernels see it.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

// bits = 0: plain, `data` holds rows x cols values of `type`.
// Else affine: `data` packs `bits` bits a value, little-endian along a row; scales and biases, of `type`, hold one
// value per `group_size` columns: w = scale * q + bias.
struct MatrixView {
  const void* data;
  const void* scales;
  const void* biases;
  DType type;
  int bits;
  int group_size;
  int64_t rows;
  int64_t cols;

  // Rows n .. n + count, as a matrix.
  MatrixView part(int64_t n, int64_t count) const {
    MatrixView result = *this;
    const auto skip = [](const void* p, int64_t bytes) { return static_cast<const char*>(p) + bytes; };
    const int64_t value = type == DType::f32 ? 4 : 2;
    result.data = skip(data, n * (bits == 0 ? cols * value : cols * bits / 8));
    if (bits != 0) {
      result.scales = skip(scales, n * (cols / group_size) * value);
      result.biases = skip(biases, n * (cols / group_size) * value);
    }
    result.rows = count;
    return result;
  }
};

// A row of a matrix, or, for what is only prefetched, the place after its last one.
struct RowOf {
  const MatrixView* matrix;
  int64_t row;
};

}  // namespace mlx_delta::cpu
