// Shared out by key head, whose value heads share q, k and the products of the two.
#include "cpu/gated_delta.h"

#include "cpu/delta_rule.h"
#include "cpu/runtime/threads.h"
#include "cpu/simd/gemm.h"
#include "decode_tokens.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {
namespace {

constexpr int64_t kChunk = 64;  // tokens of a chunk

enum { kQSlot, kKSlot, kVSlot, kProductSlot, kStateSlot };

template <typename T>
struct Head {
  const GatedDeltaArgs& args;
  int64_t b, hk;

  // Tokens [first, first + count): q and k of the key head, normalised.
  void load_qk(int64_t first, int64_t count, float* q, float* k) const {
    const float q_scale = 1.0f / sqrtf(float(args.Dk));
    for (int64_t t = 0; t < count; ++t, q += args.Dk, k += args.Dk) {
      const int64_t token = b * args.T + first + t;
      load_floats(row<T>(args.q, token) + hk * args.Dk, args.Dk, q);
      load_floats(row<T>(args.k, token) + hk * args.Dk, args.Dk, k);
      l2_normalize(q, args.Dk, q_scale);
      l2_normalize(k, args.Dk, 1.0f);
    }
  }

  bool masked(int64_t t) const { return args.mask && !args.mask[b * args.T + t]; }

  // A masked token has log g = 0 and beta = 0: it leaves the state as it is.
  Gates gates(int64_t t, int64_t hv) const {
    if (masked(t)) return {0.0f, 0.0f};
    const int64_t token = b * args.T + t;
    return delta_gates(to_float(row<T>(args.a, token)[hv]), to_float(row<T>(args.b, token)[hv]), args.A_log[hv],
                       args.dt_bias[hv]);
  }

  const T* v(int64_t t, int64_t hv) const { return row<T>(args.v, b * args.T + t) + hv * args.Dv; }
  float* state(int64_t hv) const { return args.state + (b * args.Hv + hv) * args.Dv * args.Dk; }

  void store_y(int64_t t, int64_t hv, const float* y) const {
    T* out = static_cast<T*>(args.y) + ((b * args.T + t) * args.Hv + hv) * args.Dv;
    if (masked(t))
      fill(out, args.Dv, from_float<T>(0.0f));
    else
      store_floats(y, args.Dv, out);
  }

  // Token by token: what decoding does.
  void sequential() const {
    const int64_t ratio = args.Hv / args.Hk;
    float* q = scratch_of<float>(kQSlot, args.T * args.Dk);
    float* k = scratch_of<float>(kKSlot, args.T * args.Dk);
    float* values = scratch_of<float>(kVSlot, 2 * args.Dv);
    float* y = values + args.Dv;
    load_qk(0, args.T, q, k);
    for (int64_t hv = hk * ratio; hv < (hk + 1) * ratio; ++hv)
      for (int64_t t = 0; t < args.T; ++t) {
        if (!masked(t)) {
          load_floats(v(t, hv), args.Dv, values);
          delta_step(q + t * args.Dk, k + t * args.Dk, values, gates(t, hv), args.Dk, args.Dv, state(hv), y);
        }
        store_y(t, hv, y);
      }
  }

  // In chunks of C = 64 tokens (the WY form, Yang et al., "Gated Delta Networks", arXiv 2412.06464). Unrolling
  // S_t = g_t S + u_t k_t^T, u_t = beta_t (v_t - g_t S k_t) over the chunk, with S_0 the state before it, L_t the sum
  // of log g up to and with t, and D_ts = exp(L_t - L_s) <= 1:
  //   u_t = beta_t (v_t - exp(L_t) S_0 k_t - sum_{s<t} D_ts (k_s . k_t) u_s)      forward substitution
  //   y_t = exp(L_t) S_0 q_t + sum_{s<=t} D_ts (k_s . q_t) u_s
  //   S_C = exp(L_C) S_0 + sum_s D_Cs u_s k_s^T
  // The state is kept transposed, [Dk, Dv], so that every product is rows of one matrix times another.
  void chunked() const {
    const int64_t Dk = args.Dk, Dv = args.Dv, ratio = args.Hv / args.Hk, state_size = Dk * Dv;
    float* q = scratch_of<float>(kQSlot, kChunk * Dk);
    float* k = scratch_of<float>(kKSlot, 2 * kChunk * Dk);
    float* k_transposed = k + kChunk * Dk;  // [Dk, kChunk]
    float* u = scratch_of<float>(kVSlot, 2 * kChunk * Dv);
    float* y = u + kChunk * Dv;
    float* kk = scratch_of<float>(kProductSlot, 3 * kChunk * kChunk);  // [t, s]: k_t . k_s
    float* qk = kk + kChunk * kChunk;                                  // [t, s]: q_t . k_s
    float* weights = qk + kChunk * kChunk;                             // [t, s]: D_ts qk
    float* states = scratch_of<float>(kStateSlot, ratio * state_size);
    for (int64_t i = 0; i < ratio; ++i) transpose(state(hk * ratio + i), Dk, Dv, Dk, states + i * state_size, Dv);

    // Chunks begin where the sequence does, so that padding on its left does not change a bit of it.
    int64_t start = 0;
    for (; start < args.T && masked(start); ++start)
      for (int64_t i = 0; i < ratio; ++i) store_y(start, hk * ratio + i, nullptr);
    for (int64_t first = start; first < args.T; first += kChunk) {
      const int64_t C = least(kChunk, args.T - first), columns = least(kChunk, (C + W - 1) / W * W);
      load_qk(first, C, q, k);
      fill(k + C * Dk, (columns - C) * Dk, 0.0f);
      transpose(k, Dk, columns, Dk, k_transposed, kChunk);
      fill(kk, 2 * kChunk * kChunk, 0.0f);
      gemm(k, Dk, k_transposed, kChunk, kk, kChunk, C, columns, Dk);
      gemm(q, Dk, k_transposed, kChunk, qk, kChunk, C, columns, Dk);
      for (int64_t i = 0; i < ratio; ++i)
        run_chunk(first, C, hk * ratio + i, q, k, k_transposed, u, y, kk, qk, weights, states + i * state_size);
    }
    for (int64_t i = 0; i < ratio; ++i) transpose(states + i * state_size, Dv, Dk, Dv, state(hk * ratio + i), Dk);
  }

  void run_chunk(int64_t first, int64_t C, int64_t hv, const float* q, const float* k, float* k_transposed, float* u,
                 float* y, const float* kk, const float* qk, float* weights, float* state_t) const {
    const int64_t Dk = args.Dk, Dv = args.Dv;
    float log_decay[kChunk] = {}, beta[kChunk], total = 0;
    for (int64_t t = 0; t < C; ++t) {
      const Gates g = gates(first + t, hv);
      log_decay[t] = total += g.log_g;
      beta[t] = g.beta;
    }
    fill(u, 2 * kChunk * Dv, 0.0f);  // u and y
    gemm(k, Dk, state_t, Dv, u, Dv, C, Dv, Dk);
    gemm(q, Dk, state_t, Dv, y, Dv, C, Dv, Dk);
    for (int64_t t = 0; t < C; ++t) {
      const float from_start = expf(log_decay[t]);
      float row[kChunk];                     // -D_ts (k_s . k_t)
      for (int64_t s = 0; s <= t; s += W) {  // beyond t they are dropped
        const F decay = exp(log_decay[t] - load(log_decay + s));
        store(-decay * load(kk + t * kChunk + s), row + s);
        store(decay * load(qk + t * kChunk + s), weights + t * kChunk + s);
      }
      fill(weights + t * kChunk + t + 1, C - t - 1, 0.0f);
      float* ut = u + t * Dv;
      scale(-from_start, Dv, ut);
      axpy(1.0f, v(first + t, hv), Dv, ut);
      gemm(row, kChunk, u, Dv, ut, Dv, 1, Dv, t);
      scale(beta[t], Dv, ut);
      scale(from_start, Dv, y + t * Dv);
    }
    gemm(weights, kChunk, u, Dv, y, Dv, C, Dv, C);
    for (int64_t t = 0; t < C; ++t) {
      store_y(first + t, hv, y + t * Dv);
      scale(expf(log_decay[C - 1] - log_decay[t]), Dv, u + t * Dv);
    }
    scale(expf(log_decay[C - 1]), Dk * Dv, state_t);
    gemm(k_transposed, kChunk, u, Dv, state_t, Dv, Dk, Dv, C);
  }
};

template <typename T>
void run(const GatedDeltaArgs& args) {
  parallel_for(args.B * args.Hk, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Head<T> head{args, i / args.Hk, i % args.Hk};
      args.T > kDecodeTokens ? head.chunked() : head.sequential();
    }
  });
}

}  // namespace

void gated_delta(DType type, const GatedDeltaArgs& args) { MLX_DELTA_DISPATCH(type, run, args) }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
