// One token of the gated delta rule for one value head, and what surrounds it: shared by gated_delta, gated_norm and
// the mixer.
#pragma once

#include "cpu/simd/math.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// log g = -exp(A_log) softplus(a + dt_bias), beta = sigmoid(b)
struct Gates {
  float log_g;
  float beta;
};
inline Gates delta_gates(float a, float b, float A_log, float dt_bias) {
  return {-expf(A_log) * softplus(a + dt_bias), sigmoid(b)};
}

// x * rsqrt(sum(x^2) + 1e-6) * factor, in place
inline void l2_normalize(float* x, int64_t n, float factor) { scale(factor / sqrtf(dot(x, x, n) + 1e-6f), n, x); }

// out = norm * rms(y) * silu(z) over one head's Dv values
template <typename T>
inline void norm_and_gate(const float* y, const T* z, const float* norm, int64_t Dv, float eps, T* out) {
  const float inverse = inverse_rms(y, Dv, eps);
  int64_t i = 0;
  for (; i + W <= Dv; i += W) store(inverse * load(y + i) * load(norm + i) * silu(load(z + i)), out + i);
  for (; i < Dv; ++i) out[i] = from_float<T>(inverse * y[i] * norm[i] * silu(to_float(z[i])));
}

// S = g S; S += beta (v - S k) k^T; y = S q, with S [Dv, Dk] and q, k normalised. Bound by memory: each row of S is
// read once, since y = g (S q) + u (k . q) with u = beta (v - g (S k)), and written once. Four rows at a time keep
// eight independent sums and eight loads in flight.
inline void delta_step(const float* q, const float* k, const float* v, Gates gates, int64_t Dk, int64_t Dv,
                       float* state, float* y) {
  const float g = expf(gates.log_g), kq = dot(k, q, Dk);
  constexpr int rows = 4;
  int64_t i = 0;
  for (; i + rows <= Dv; i += rows, state += rows * Dk) {
    F sk[rows] = {}, sq[rows] = {};
    float tail_k[rows] = {}, tail_q[rows] = {};
    int64_t c = 0;
    for (; c + W <= Dk; c += W) {
      const F kc = load(k + c), qc = load(q + c);
      MLX_DELTA_UNROLL
      for (int r = 0; r < rows; ++r) {
        const F s = load(state + r * Dk + c);
        sk[r] += s * kc;
        sq[r] += s * qc;
      }
    }
    for (; c < Dk; ++c) MLX_DELTA_UNROLL
    for (int r = 0; r < rows; ++r) {
      tail_k[r] += state[r * Dk + c] * k[c];
      tail_q[r] += state[r * Dk + c] * q[c];
    }
    float u[rows];
    MLX_DELTA_UNROLL
    for (int r = 0; r < rows; ++r) {
      u[r] = gates.beta * (v[i + r] - g * (sum(sk[r]) + tail_k[r]));
      y[i + r] = g * (sum(sq[r]) + tail_q[r]) + u[r] * kq;
    }
    for (c = 0; c + W <= Dk; c += W) {
      const F kc = load(k + c);
      MLX_DELTA_UNROLL
      for (int r = 0; r < rows; ++r) store(g * load(state + r * Dk + c) + u[r] * kc, state + r * Dk + c);
    }
    for (; c < Dk; ++c) MLX_DELTA_UNROLL
    for (int r = 0; r < rows; ++r) state[r * Dk + c] = g * state[r * Dk + c] + u[r] * k[c];
  }
  for (; i < Dv; ++i, state += Dk) {
    const float u = gates.beta * (v[i] - g * dot(state, k, Dk));
    y[i] = g * dot(state, q, Dk) + u * kq;
    scale(g, Dk, state);
    axpy(u, k, Dk, state);
  }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
