// The launches of attention on a GPU. Inputs: q, projection, keys, values [, start]; output: y.
#pragma once

#include "gpu/launch.h"

namespace mlx_delta::gpu {

struct AttentionShape {
  std::string type;
  int B;
  int T;
  int Hq;
  int Hkv;
  int D;
  int S;
  int length;
  int width;  // columns of projection
  float scale;
  int start;  // index of the input, or -1
};

Plan plan(const AttentionShape& shape);

}  // namespace mlx_delta::gpu
