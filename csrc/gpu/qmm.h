// The launch of qmm on a GPU.
#pragma once

#include <optional>

#include "decode_tokens.h"
#include "gpu/launch.h"

namespace mlx_delta::gpu {

inline constexpr int kMaxQmmSegments = 4;

struct QmmSegment {
  std::string type;  // of the weights if plain, else of scales and biases
  int bits;          // 0: plain
  int group_size;
  int rows;
  int input;  // index of its first input: weight [, scales, biases]
};

struct QmmShape {
  std::string type;  // of x, residual and y
  int M;             // 1 .. kDecodeTokens
  int K;
  int N;
  float eps;
  bool swiglu;
  int norm;                          // index of the input, or -1
  int residual;                      // likewise
  std::vector<QmmSegment> segments;  // 1 .. kMaxQmmSegments
};

Plan plan(const QmmShape& shape);

}  // namespace mlx_delta::gpu
