#include "cpu/gated_norm.h"

#include "cpu/delta_rule.h"
#include "cpu/threads.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

template <typename T>
void run(const GatedNormArgs& args) {
  const int64_t D = args.D;
  parallel_for_shrinking(args.rows, 1 + 8192 / D, [&](int64_t first, int64_t last) {
    float* y = scratch_of<float>(0, D);
    for (int64_t row = first; row < last; ++row) {
      load_floats(static_cast<const T*>(args.y) + row * D, D, y);
      norm_and_gate(y, static_cast<const T*>(args.z) + row * D, args.norm, D, args.eps,
                    static_cast<T*>(args.out) + row * D);
    }
  });
}

}  // namespace

void gated_norm(DType type, const GatedNormArgs& args) { MLX_DELTA_DISPATCH(type, run, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
