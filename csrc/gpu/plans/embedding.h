// The launch of embedding on a GPU.
#pragma once

#include "gpu/launch.h"
#include "params.h"

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

inline Plan plan(const EmbeddingShape& shape) {
  const bool plain = shape.bits == 0;
  const std::string format = plain ? "Plain<" + shape.weight_type + ", " + metal_bool(shape.cols % 8 == 0) + ">"
                                   : "Affine<" + shape.weight_type + ", " + std::to_string(shape.bits) + ", " +
                                         std::to_string(shape.group_size) + ">";
  const int blocks = ceil_div(shape.cols, plain ? 8 : 32);
  constexpr int kThreads = 32;
  return {{{"embedding",
            "embedding",
            {shape.type, format},
            {{Buffer::input, 0},
             {Buffer::input, 1},
             optional_input(plain ? -1 : 2),
             optional_input(plain ? -1 : 3),
             {Buffer::output, 0}},
            bytes_of(EmbeddingParams{shape.rows, shape.cols}),
            {ceil_div(blocks, kThreads), shape.tokens, 1},
            {kThreads, 1, 1}}},
          {},
          {}};
}

}  // namespace mlx_delta::gpu
