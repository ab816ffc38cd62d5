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

// Key head hk of sequence b of a part.
template <typename T>
void mix_sequence(const DeltaMixerArgs& args, const DeltaMixerPart& part, int64_t b, int64_t hk) {
  const int64_t value_dim = args.Hv * args.Dv, of_head = args.Hv / args.Hk * args.Dv * args.Dk;
  const int64_t C = 2 * args.Hk * args.Dk + value_dim, width = C + value_dim + 2 * args.Hv;
  float* states = part.delta_state + (b * args.Hk + hk) * of_head;
  if (part.P > 0) {
    const Conv1dArgs pending{
        {part.pending, width}, args.conv_weight, nullptr, part.conv_in, part.conv_out, nullptr, part.B, part.P, C};
    mix_head<T>(args, pending, b, hk, states, nullptr);
  }
  if (!part.keep) {
    float* copy = scratch_of<float>(kStateSlot, of_head);
    std::memcpy(copy, states, size_t(of_head) * sizeof(float));
    states = copy;
  }
  const Conv1dArgs tokens{{static_cast<const T*>(args.projection) + part.first * width, width},
                          args.conv_weight,
                          args.mask ? args.mask + part.first : nullptr,
                          part.P > 0 ? part.conv_out : part.conv_in,
                          part.keep ? part.conv_out : nullptr,
                          nullptr,
                          part.B,
                          part.T,
                          C};
  mix_head<T>(args, tokens, b, hk, states, static_cast<T*>(args.y) + part.first * value_dim);
}

template <typename T>
void mix(const DeltaMixerArgs& args) {
  int64_t sequences = 0;
  for (int64_t i = 0; i < args.parts; ++i) sequences += args.part[i].B;
  parallel_for(sequences * args.Hk, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      int64_t b = i / args.Hk;
      const DeltaMixerPart* part = args.part;
      for (; b >= part->B; ++part) b -= part->B;
      mix_sequence<T>(args, *part, b, i % args.Hk);
    }
  });
}

}  // namespace

void delta_mixer(DType type, const DeltaMixerArgs& args) { MLX_DELTA_DISPATCH(type, mix, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
