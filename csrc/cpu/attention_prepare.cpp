#include "cpu/attention_prepare.h"

#include "cpu/kv_row.h"
#include "cpu/runtime/threads.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

// Which position (0 = T, 1 = H, 2 = W) frequency i turns with: interleaved T H W T H W ..., each of H and W only as
// often as its section says.
int position_axis(int i, const int sections[3]) {
  const int axis = i % 3;
  return axis != 0 && i / 3 < sections[axis] ? axis : 0;
}

// theta^(-2i / rope_dim), the same for every token. In double: float angles of long contexts would be off by 1e-3.
void frequencies(const AttentionPrepareArgs& args, double* out) {
  for (int i = 0; i < args.rope_dim / 2; ++i) out[i] = ::pow(double(args.rope_theta), -2.0 * i / args.rope_dim);
}

// cos and sin [rope_dim / 2] of a token, whose index is `at`
void rotation(const AttentionPrepareArgs& args, const double* frequency, int64_t token, int64_t at, float* cosine,
              float* sine) {
  for (int i = 0; i < args.rope_dim / 2; ++i) {
    const int64_t position =
        args.positions ? args.positions[position_axis(i, args.sections) * args.tokens + token] : at;
    const double angle = double(position) * frequency[i];
    cosine[i] = float(::cos(angle));
    sine[i] = float(::sin(angle));
  }
}

// One head: RMSNorm over D, then (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) on the halves of the first rope_dim.
template <typename T>
void normalize_and_rotate(const AttentionPrepareArgs& args, const T* in, const float* norm, const float* cosine,
                          const float* sine, float* scratch, T* out) {
  load_floats(in, args.D, scratch);
  const float inverse = inverse_rms(scratch, args.D, args.eps);
  for (int64_t i = 0; i < args.D; ++i) scratch[i] *= inverse * norm[i];
  const int half = args.rope_dim / 2;
  for (int i = 0; i < half; ++i) {
    const float x1 = scratch[i], x2 = scratch[i + half];
    scratch[i] = x1 * cosine[i] - x2 * sine[i];
    scratch[i + half] = x2 * cosine[i] + x1 * sine[i];
  }
  store_floats(scratch, args.D, out);
}

// Token t of sequence b of a part.
template <typename T>
void prepare_token(const AttentionPrepareArgs& args, const KvPart& part, int64_t b, int64_t t,
                   const double* frequency) {
  const int64_t D = args.D, token = part.first + b * part.T + t;
  float* scratch = scratch_of<float>(1, D + args.rope_dim);
  T* rounded = scratch_of<T>(2, D);
  float *cosine = scratch + D, *sine = cosine + args.rope_dim / 2;
  const T* in = static_cast<const T*>(args.projection) + token * (2 * args.Hq + 2 * args.Hkv) * D;
  T* q = static_cast<T*>(args.q) + (part.first + b * part.T) * args.Hq * D;
  rotation(args, frequency, token, part.offset + t, cosine, sine);
  for (int64_t h = 0; h < args.Hq; ++h)  // [q | gate] per head: the gate is left for attention
    normalize_and_rotate(args, in + h * 2 * D, args.q_norm, cosine, sine, scratch, q + (h * part.T + t) * D);
  const T* k = in + 2 * args.Hq * D;
  const T* v = k + args.Hkv * D;
  for (int64_t h = 0; h < args.Hkv; ++h) {
    const int64_t row = (b * args.Hkv + h) * part.S + part.offset + t;
    if (args.eight_bits) {
      normalize_and_rotate(args, k + h * D, args.k_norm, cosine, sine, scratch, rounded);
      quantize_kv_row(rounded, D, static_cast<int8_t*>(part.keys) + row * kv_row_bytes(D));
      quantize_kv_row(v + h * D, D, static_cast<int8_t*>(part.values) + row * kv_row_bytes(D));
      continue;
    }
    T* key = static_cast<T*>(part.keys) + row * D;
    normalize_and_rotate(args, k + h * D, args.k_norm, cosine, sine, scratch, key);
    std::memcpy(static_cast<T*>(part.values) + row * D, v + h * D, size_t(D) * sizeof(T));
  }
}

// A token is one thread's: its rotation serves all heads.
template <typename T>
void prepare(const AttentionPrepareArgs& args) {
  double* frequency = scratch_of<double>(0, args.rope_dim / 2);
  frequencies(args, frequency);
  const KvPart& end = args.part[args.parts - 1];
  parallel_for(end.first + end.B * end.T - args.part[0].first, 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t token = args.part[0].first + i;
      const KvPart* part = args.part;
      while (token >= part->first + part->B * part->T) ++part;
      prepare_token<T>(args, *part, (token - part->first) / part->T, (token - part->first) % part->T, frequency);
    }
  });
}

}  // namespace

void attention_prepare(DType type, const AttentionPrepareArgs& args) { MLX_DELTA_DISPATCH(type, prepare, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
