// A weight matrix as the ops take it: plain, or affine-quantized in MLX's packing. Checked once, when it is made.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cpu/matrix.h"
#include "mlx/array.h"
#include "mlx/utils.h"

namespace mlx_delta {

namespace mx = mlx::core;

struct Matrix {
  // weight: [N, K] float32 / float16 / bfloat16.
  static Matrix plain(mx::array weight);

  // weight: uint32 [N, K bits / 32], little-endian along a row; scales, biases: float [N, K / group_size];
  // w = scale * q + bias. bits: 2, 3, 4, 5, 6 or 8. group_size: 32, 64 or 128.
  static Matrix affine(mx::array weight, mx::array scales, mx::array biases, int bits, int group_size);

  bool quantized() const { return bits != 0; }
  int64_t nbytes() const;
  std::string repr() const;

  // What a kernel of this matrix takes as inputs, and the view of those inputs when they are evaluated.
  std::vector<mx::array> inputs(mx::Stream stream) const;
  cpu::MatrixView view(const mx::array* inputs) const;
  int input_count() const { return quantized() ? 3 : 1; }

  mx::array weight;
  std::optional<mx::array> scales, biases;
  int bits;        // 0: plain
  int group_size;  // 0: plain
  int rows;        // N
  int cols;        // K
};

}  // namespace mlx_delta
