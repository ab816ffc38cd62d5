// Products that have nothing to do with each other, as one pool of work: what small ones, an expert's, need to keep all
// threads busy.
#pragma once

#include "cpu/qmm.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

struct ProductArgs {
  const QmmArgs* of;
  int64_t count;
};

// In qmm.cpp. Scratch slots 0, 1, 3, 4 and 5 are its own.
void multiply_all(DType type, const ProductArgs& products);

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
