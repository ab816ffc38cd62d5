// The launch of attention_prepare on a GPU. Inputs: projection, q_norm, k_norm, keys, values [, positions]; outputs: q,
// keys, values.
#pragma once

#include "gpu/launch.h"

namespace mlx_delta::gpu {

struct AttentionPrepareShape {
  std::string type;
  int B;
  int T;
  int Hq;
  int Hkv;
  int D;
  int S;
  int offset;
  float rope_theta;
  int rope_dim;
  std::array<int, 3> rope_sections;
  float eps;
  int positions;  // index of the input, or -1
};

Plan plan(const AttentionPrepareShape& shape);

}  // namespace mlx_delta::gpu
