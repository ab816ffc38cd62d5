// Element types of the CPU kernels, without MLX: float32, float16 and bfloat16 by their bits.
// Types only: whatever computes with them is in simd/vector.h, once per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mlx_delta::cpu {

enum class DType { f32, f16, bf16 };

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Rows that are contiguous in themselves and one stride apart, in elements: slices of wider rows among them.
struct Rows {
  const void* data;
  int64_t stride;
};

}  // namespace mlx_delta::cpu
