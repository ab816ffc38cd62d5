// The next token of each row of logits: see ops/sample.cpp.
#pragma once

#include "cpu/types.h"

namespace mlx_delta::cpu {

// Of each mask, row b is at b * its stride: 0 where all rows share one.
struct SampleArgs {
  const void* logits;      // [B, V] of T
  const uint64_t* random;  // [B], or null: the likeliest token
  const bool* allowed;     // [N], or null: all are
  const bool* prompt;      // [N], or null: none is
  const bool* generated;   // [N], or null: none is
  int32_t* tokens;         // [B]
  int64_t B, V, N;         // N <= V: the columns that are tokens
  int64_t allowed_stride, prompt_stride, generated_stride;
  int64_t top_k;    // 0: off
  double top_p;     // 1: off
  float log_min_p;  // log of min_p; -inf: off
  float temperature;
  float presence_penalty, repetition_penalty;
};

}  // namespace mlx_delta::cpu
