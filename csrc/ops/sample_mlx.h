// sample on a GPU: a composition of MLX's own operations.
#pragma once

#include <optional>

#include "mlx/array.h"
#include "mlx/utils.h"

namespace mlx_delta {

namespace mx = mlx::core;

struct SampleFilters {
  float temperature;
  int top_k;
  double top_p, min_p;
  float presence_penalty, repetition_penalty;
};

struct SampleMasks {
  std::optional<mx::array> allowed, prompt, generated;
};

// What sample chooses (ops/sample.cpp), its arguments already checked. Order, ties and what top_k and min_p keep are
// exact; masses are summed in float32, which moves the border of top_p and the random point by up to 2^-24 a token.
mx::array sample_mlx(const mx::array& logits, const std::optional<mx::array>& random, const SampleFilters& filters,
                     const SampleMasks& masks, std::optional<int> vocab_size, mx::StreamOrDevice stream);

}  // namespace mlx_delta
