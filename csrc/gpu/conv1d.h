// The launch of conv1d on a GPU. Inputs: x, weight, state [, mask]; outputs: y, state.
#pragma once

#include "gpu/launch.h"

namespace mlx_delta::gpu {

struct Conv1dShape {
  std::string type;
  int B;
  int T;
  int C;
  int mask;  // index of the input, or -1
};

Plan plan(const Conv1dShape& shape);

}  // namespace mlx_delta::gpu
