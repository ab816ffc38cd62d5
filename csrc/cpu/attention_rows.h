// attention_prepare and attention of several sequences, each with keys and values of its own: see
// ops/attention_rows.cpp.
#pragma once

#include "cpu/attention.h"
#include "cpu/attention_prepare.h"

namespace mlx_delta::cpu {

// Of the same parts. The query lies in between: neither has one.
struct AttentionRowsArgs {
  AttentionPrepareArgs prepare;
  AttentionArgs attention;
};

}  // namespace mlx_delta::cpu
