// Shared out by key head: its channels of q and k, its value heads' channels of v, their states and outputs belong to
// nobody else, so that one thread takes them through the convolution, the recurrence and the norm with one hand-over.
#include "cpu/delta_mixer.h"

#include "cpu/convolve.h"
#include "cpu/delta_rule.h"
#include "cpu/runtime/threads.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

enum { kQkvSlot, kYSlot, kStateSlot };

// The value heads of key head hk of sequence b, whose states are `states` [Hv / Hk, Dv, Dk]; conv: the tokens. y: where
// their outputs go, null: nowhere.
template <typename T>
void mix_head(const DeltaMixerArgs& args, const Conv1dArgs& conv, int64_t b, int64_t hk, float* states, void* y) {
  const int64_t Dk = args.Dk, Dv = args.Dv, ratio = args.Hv / args.Hk;
  const int64_t key_dim = args.Hk * Dk, value_dim = args.Hv * Dv;
  const int64_t values = ratio * Dv, stride = 2 * Dk + values;
  float* qkv = scratch_of<float>(kQkvSlot, conv.T * stride);  // [T, q | k | v of the value heads]
  float* of_head = scratch_of<float>(kYSlot, Dv);
  convolve<T>(conv, b, hk * Dk, (hk + 1) * Dk, qkv, stride);
  convolve<T>(conv, b, key_dim + hk * Dk, key_dim + (hk + 1) * Dk, qkv + Dk, stride);
  convolve<T>(conv, b, 2 * key_dim + hk * values, 2 * key_dim + (hk + 1) * values, qkv + 2 * Dk, stride);

  const float q_scale = 1.0f / sqrtf(float(Dk));
  for (int64_t t = 0; t < conv.T; ++t) {
    const int64_t token = b * conv.T + t;
    const T* z = row<T>(conv.x, token) + conv.C;
    const T* gate_b = z + value_dim;
    const T* gate_a = gate_b + args.Hv;
    T* out = y ? static_cast<T*>(y) + token * value_dim : nullptr;
    if (conv.mask && !conv.mask[token]) {
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
      delta_step(q, k, k + Dk + i * Dv, gates, Dk, Dv, states + i * Dv * Dk, of_head);
      if (out) norm_and_gate(of_head, z + h * Dv, args.norm, Dv, args.eps, out + h * Dv);
    }
  }
}

template <typename T>
void mix(const DeltaMixerArgs& args) {
  const int64_t value_dim = args.Hv * args.Dv;
  const int64_t C = 2 * args.Hk * args.Dk + value_dim, width = C + value_dim + 2 * args.Hv;
  const Conv1dArgs pending{
      {args.pending, width}, args.conv_weight, nullptr, args.conv_in, args.conv_out, nullptr, args.B, args.P, C};
  const Conv1dArgs tokens{{args.projection, width},
                          args.conv_weight,
                          args.mask,
                          args.P > 0 ? args.conv_out : args.conv_in,
                          args.keep ? args.conv_out : nullptr,
                          nullptr,
                          args.B,
                          args.T,
                          C};
  const int64_t of_head = args.Hv / args.Hk * args.Dv * args.Dk;
  parallel_for(args.B * args.Hk, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      float* states = args.delta_state + i * of_head;
      if (args.P > 0) mix_head<T>(args, pending, i / args.Hk, i % args.Hk, states, nullptr);
      if (!args.keep) {
        float* copy = scratch_of<float>(kStateSlot, of_head);
        std::memcpy(copy, states, size_t(of_head) * sizeof(float));
        states = copy;
      }
      mix_head<T>(args, tokens, i / args.Hk, i % args.Hk, states, args.y);
    }
  });
}

}  // namespace

void delta_mixer(DType type, const DeltaMixerArgs& args) { MLX_DELTA_DISPATCH(type, mix, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
