// The call that an op makes of its CPU kernel, as data: for tests that run it elsewhere (tests/neon).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "cpu/types.h"
#include "mlx/array.h"

namespace mlx_delta {

namespace mx = mlx::core;

struct KernelCall {
  std::string kernel;  // its name in cpu/kernels.def
  cpu::DType type;     // of the activations
  // The arguments' struct, with the numbers of buffers, from 1, in the place of pointers (0: null), and where those
  // are.
  std::vector<char> arguments;
  std::vector<int> pointers;
  // From the first to the last element of the op's inputs, then its outputs as the kernel finds them; whether it is one
  // of these.
  std::vector<std::pair<std::string, bool>> buffers;
};

// That of an op's result, whose inputs are evaluated for it and which is itself left as it is. Throws
// std::invalid_argument if it is no unevaluated result of an op of ours.
KernelCall kernel_call(const mx::array& result);

}  // namespace mlx_delta
