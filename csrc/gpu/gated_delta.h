// The launch of gated_delta on a GPU. Inputs: q, k, v, a, b, A_log, dt_bias, state [, mask]; outputs: y, state.
#pragma once

#include "gpu/launch.h"

namespace mlx_delta::gpu {

struct GatedDeltaShape {
  std::string type;
  int B;
  int T;
  int Hk;
  int Hv;
  int Dk;
  int Dv;
  int mask;  // index of the input, or -1
};

Plan plan(const GatedDeltaShape& shape);

}  // namespace mlx_delta::gpu
