#include "cpu/gated_norm.h"

#include "cpu/delta_rule.h"
#include "cpu/runtime/threads.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

template <typename T>
void run(const GatedNormArgs& args) {
  const int64_t D = args.D, heads = args.rows * args.heads;
  parallel_for_shrinking(heads, 1 + 8192 / D, [&](int64_t first, int64_t last) {
    float* y = scratch_of<float>(0, D);
    for (int64_t i = first; i < last; ++i) {
      load_floats(static_cast<const T*>(args.y) + i * D, D, y);
      const T* z = row<T>(args.z, i / args.heads) + i % args.heads * D;
      norm_and_gate(y, z, args.norm, D, args.eps, static_cast<T*>(args.out) + i * D);
    }
  });
}

}  // namespace

void gated_norm(DType type, const GatedNormArgs& args) { MLX_DELTA_DISPATCH(type, run, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
