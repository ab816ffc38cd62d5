// out[i] = row tokens[i] of the table: see ops/embedding.cpp.
#pragma once

#include "cpu/matrix.h"

namespace mlx_delta::cpu {

struct EmbeddingArgs {
  const int32_t* tokens;  // [count]
  void* out;              // [count, cols] of T
  int64_t count;
  MatrixView table;
};

}  // namespace mlx_delta::cpu
