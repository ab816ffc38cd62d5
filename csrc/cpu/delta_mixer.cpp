// Shared out by key head: its channels of q and k, its value heads' channels of v, their states and outputs belong to
// nobody else, so that one thread takes them through the convolution, the recurrence and the norm with one hand-over.
#include "cpu/delta_mixer.h"

#include "cpu/convolve.h"
#include "cpu/delta_rule.h"
#include "cpu/runtime/threads.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

template <typename T>
void mix_head(const DeltaMixerArgs& args, const Conv1dArgs& conv, int64_t b, int64_t hk) {
  const int64_t Dk = args.Dk, Dv = args.Dv, ratio = args.Hv / args.Hk;
  const int64_t key_dim = args.Hk * Dk, value_dim = args.Hv * Dv;
  const int64_t values = ratio * Dv, stride = 2 * Dk + values;
  float* qkv = scratch_of<float>(0, args.T * stride);  // [T, q | k | v of the value heads]
  float* y = scratch_of<float>(1, Dv);
  convolve<T>(conv, b, hk * Dk, (hk + 1) * Dk, qkv, stride);
  convolve<T>(conv, b, key_dim + hk * Dk, key_dim + (hk + 1) * Dk, qkv + Dk, stride);
  convolve<T>(conv, b, 2 * key_dim + hk * values, 2 * key_dim + (hk + 1) * values, qkv + 2 * Dk, stride);

  const float q_scale = 1.0f / sqrtf(float(Dk));
  for (int64_t t = 0; t < args.T; ++t) {
    const int64_t token = b * args.T + t;
    const T* z = row<T>(conv.x, token) + conv.C;
    const T* gate_b = z + value_dim;
    const T* gate_a = gate_b + args.Hv;
    T* out = static_cast<T*>(args.y) + token * value_dim;
    if (args.mask && !args.mask[token]) {
      fill(out + hk * values, values, from_float<T>(0.0f));
      continue;
    }
    float* q = qkv + t * stride;
    float* k = q + Dk;
    l2_normalize(q, Dk, q_scale);
    l2_normalize(k, Dk, 1.0f);
    for (int64_t i = 0; i < ratio; ++i) {
      const int64_t h = hk * ratio + i;
      const Gates gates = delta_gates(to_float(gate_a[h]), to_float(gate_b[h]), args.A_log[h], args.dt_bias[h]);
      delta_step(q, k, k + Dk + i * Dv, gates, Dk, Dv, args.delta_state + (b * args.Hv + h) * Dv * Dk, y);
      norm_and_gate(y, z + h * Dv, args.norm, Dv, args.eps, out + h * Dv);
    }
  }
}

template <typename T>
void mix(const DeltaMixerArgs& args) {
  const int64_t value_dim = args.Hv * args.Dv;
  const int64_t C = 2 * args.Hk * args.Dk + value_dim;
  const Conv1dArgs conv{{args.projection, C + value_dim + 2 * args.Hv},
                        args.conv_weight,
                        args.mask,
                        args.conv_in,
                        args.conv_out,
                        nullptr,
                        args.B,
                        args.T,
                        C};
  parallel_for(args.B * args.Hk, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) mix_head<T>(args, conv, i / args.Hk, i % args.Hk);
  });
}

}  // namespace

void delta_mixer(DType type, const DeltaMixerArgs& args) { MLX_DELTA_DISPATCH(type, mix, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
