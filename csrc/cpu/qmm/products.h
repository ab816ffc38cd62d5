// Products that have nothing to do with each other, as one pool of work: what small ones, an expert's, need to keep all
// threads busy.
#pragma once

#include <type_traits>

#include "cpu/qmm.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

struct ProductArgs {
  const QmmArgs* of;
  int64_t count;
};

// Of a type of activations.
template <typename T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>)
    return DType::f32;
  else
    return std::is_same_v<T, f16> ? DType::f16 : DType::bf16;
}

// In qmm.cpp. Scratch slots 0, 1, 3, 4 and 5 are its own.
void multiply_all(DType type, const ProductArgs& products);

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
