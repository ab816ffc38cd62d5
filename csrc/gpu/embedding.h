// The launch of embedding on a GPU.
#pragma once

#include "gpu/launch.h"

namespace mlx_delta::gpu {

struct EmbeddingShape {
  std::string type;         // of the result
  std::string weight_type;  // of the table if plain, else of its scales and biases
  int tokens;
  int rows;
  int cols;
  int bits;
  int group_size;
};

Plan plan(const EmbeddingShape& shape);

}  // namespace mlx_delta::gpu
