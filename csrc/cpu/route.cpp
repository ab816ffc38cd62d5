// The logits are one product of qmm, in float; then each row is looked through k times, which for some hundred experts
// is less than its product takes by far.
#include "cpu/route.h"

#include "cpu/qmm/products.h"
#include "cpu/runtime/threads.h"
#include "cpu/simd/rows.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

enum { kLogitsSlot = 6 };

// The k largest of `count` logits, largest first and of equals the first; their softmax among themselves. A NaN is
// below all numbers: where it is one of the k, so is every weight.
void choose(const float* logits, int64_t count, int64_t k, uint32_t* chosen, float* weights) {
  const auto above = [](float a, float b) { return a > b || (a == a && b != b); };
  float total = 0;
  for (int64_t i = 0; i < k; ++i) {
    const auto taken = [&](int64_t e) {
      bool found = false;
      for (int64_t j = 0; j < i; ++j) found |= chosen[j] == uint32_t(e);
      return found;
    };
    int64_t best = -1;
    for (int64_t e = 0; e < count; ++e)
      if ((best < 0 || above(logits[e], logits[best])) && !taken(e)) best = e;
    chosen[i] = uint32_t(best);
    weights[i] = expf(logits[best] - logits[chosen[0]]);
    total += weights[i];
  }
  for (int64_t i = 0; i < k; ++i) weights[i] /= total;
}

}  // namespace

void route(DType type, const RouteArgs& args) {
  const int64_t E = args.router.rows, N = E + 1;
  float* logits = scratch_of<float>(kLogitsSlot, args.M * N);
  const QmmArgs product{args.x, args.norm, nullptr,  logits, args.M, args.positions,
                        args.K, N,         args.eps, false,  2,      {args.router, args.shared_gate},
                        true};
  multiply_all(type, {&product, 1});
  parallel_for(args.M, most<int64_t>(1, 16384 / (N * args.k)), [&](int64_t from, int64_t to) {
    for (int64_t m = from; m < to; ++m) {
      float* weights = args.weights + m * (args.k + 1);
      choose(logits + m * N, E, args.k, args.chosen + m * args.k, weights);
      weights[args.k] = 1.0f / (1.0f + expf(-logits[m * N + E]));
    }
  });
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
