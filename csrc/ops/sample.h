// sample: the next token of each row of logits, chosen by 64 random bits a row.
//
//   logits [B, V], of which the first N = vocab_size columns are tokens; random: uint64 [B] -> tokens int32 [B]
//
//   x = logits, in float32; NaN is -inf
//   x = x / repetition_penalty if x > 0, else x * repetition_penalty     where prompt | generated
//   x = x - presence_penalty                                             where generated
//   x = -inf                                                             where not allowed
//   x = x / temperature
//   keep, in the order of descending x, ascending id:
//     the first top_k                                                    0: all
//     those before which lies less than top_p of the mass of exp(x)      1: all; of what top_k kept
//     those with x >= max(x) + log(min_p)                                0: all
//   token = the one in whose part of the mass lies the point random / 2^64, parts laid end to end by ascending id
//
// Without random: the first token of the order. Masks are bool, [B, N] or [1, N] for all rows. A row that has nothing
// but -inf gives token 0.
#pragma once

#include "ops/common.h"

namespace mlx_delta {

struct SampleFilters {
  float temperature;
  int top_k;
  double top_p, min_p;
  float presence_penalty, repetition_penalty;
};

struct SampleMasks {
  std::optional<mx::array> allowed, prompt, generated;
};

mx::array sample(const mx::array& logits, const std::optional<mx::array>& random, const SampleFilters& filters,
                 const SampleMasks& masks, std::optional<int> vocab_size, mx::StreamOrDevice stream);

}  // namespace mlx_delta
