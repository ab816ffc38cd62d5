// What arithmetic allows: the float32 roof of a roofline.
#include "cpu/runtime/threads.h"
#include "cpu/simd/vector.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// `steps` vector multiply-adds in each of some independent chains, on all threads, for the caller to time: the
// operations done, a multiplication and an addition each.
int64_t multiply_add(int64_t steps) {
  constexpr int kChains = 12;  // covers latency times throughput, and with both operands still fits 16 registers
  const int64_t pieces = 4 * int64_t(thread_count());
  parallel_for(pieces, 1, [&](int64_t first, int64_t last) {
    volatile float given[2] = {0.5f, 0.5f};  // not known when compiled; x / 2 + 1 / 2 stays around 1
    volatile float kept;
    for (int64_t piece = first; piece < last; ++piece) {
      const F scale = splat(given[0]), offset = splat(given[1]);
      F sums[kChains];
      MLX_DELTA_UNROLL
      for (int j = 0; j < kChains; ++j) sums[j] = offset * float(j);
      for (int64_t i = 0; i < steps; ++i) {
        MLX_DELTA_UNROLL
        for (int j = 0; j < kChains; ++j) sums[j] = sums[j] * scale + offset;
      }
      MLX_DELTA_UNROLL
      for (int j = 1; j < kChains; ++j) sums[0] += sums[j];
      kept = sums[0][0];
    }
    (void)kept;
  });
  return 2 * W * kChains * steps * pieces;
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
