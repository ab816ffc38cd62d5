// The launch of delta_mixer on a GPU. Inputs: projection, conv weight, A_log, dt_bias, norm, conv state, delta state
// [, mask]; outputs: y, conv state, delta state.
#pragma once

#include "gpu/launch.h"

namespace mlx_delta::gpu {

struct DeltaMixerShape {
  std::string type;
  int B;
  int T;
  int Hk;
  int Hv;
  int Dk;
  int Dv;
  float eps;
  int mask;  // index of the input, or -1
};

Plan plan(const DeltaMixerShape& shape);

}  // namespace mlx_delta::gpu
