// What an op makes of its arguments: the inputs of its primitive, in the layout and dtype that kernels read.
#pragma once

#include <optional>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"

namespace mlx_delta {

namespace mx = mlx::core;

// Ops run on MLX's default device, as MLX's own do, unless the caller names a stream: the GPU of a Mac, else the CPU.
bool on_gpu(const mx::Stream& stream);

// `a` laid end to end, which is how kernels read all inputs but those of sliced(). Adds a node only where the layout is
// not known to be so already.
mx::array contiguous(const mx::array& a, mx::Stream stream);

// An input that prefill slices from wider rows: a CPU kernel reads it where it is, by rows_of(); for a GPU it is made
// contiguous.
mx::array sliced(const mx::array& a, mx::Stream stream);

// Small parameters (norm weights, gates, convolution taps) reach the kernels as contiguous float32.
mx::array float_parameter(const mx::array& a, mx::Stream stream);

// Checks [B, T] bool or int and returns it as contiguous bool.
mx::array token_mask(const char* op, const mx::array& mask, int B, int T, mx::Stream stream);

// Appends an optional input; its index, or -1.
inline int push_optional(std::vector<mx::array>& inputs, const std::optional<mx::array>& a) {
  if (!a) return -1;
  inputs.push_back(*a);
  return int(inputs.size()) - 1;
}

}  // namespace mlx_delta
