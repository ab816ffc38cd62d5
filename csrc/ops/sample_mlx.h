// sample on a GPU: a composition of MLX's own operations.
#pragma once

#include "ops/sample.h"

namespace mlx_delta {

// What sample chooses (ops/sample.h), its arguments already checked. Order, ties and what top_k and min_p keep are
// exact; masses are summed in float32, which moves the border of top_p and the random point by up to 2^-24 a token.
mx::array sample_mlx(const mx::array& logits, const std::optional<mx::array>& random, const SampleFilters& filters,
                     const SampleMasks& masks, std::optional<int> vocab_size, mx::StreamOrDevice stream);

}  // namespace mlx_delta
