// The launch of conv1d on a GPU. Inputs: x, weight, state [, mask]; outputs: y, state.
#pragma once

#include "gpu/launch.h"
#include "params.h"

namespace mlx_delta::gpu {

struct Conv1dShape {
  std::string type;
  int B;
  int T;
  int C;
  int mask;  // index of the input, or -1
};

inline Plan plan(const Conv1dShape& shape) {
  constexpr int kThreads = 64;
  constexpr int kTokens = 16;  // of a thread: what it reads before its own tokens is then a small part
  const int chunks = ceil_div(shape.T, kTokens);
  return {{{"conv1d",
            "conv1d",
            {shape.type, metal_bool(shape.mask >= 0), std::to_string(kTokens)},
            {{Buffer::input, 0},
             {Buffer::input, 1},
             {Buffer::input, 2},
             optional_input(shape.mask),
             {Buffer::output, 0},
             {Buffer::output, 1}},
            bytes_of(Conv1dParams{shape.T, shape.C}),
            {ceil_div(shape.C, kThreads), chunks, shape.B},
            {kThreads, 1, 1}}},
          {},
          {}};
}

}  // namespace mlx_delta::gpu
