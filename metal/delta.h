// The gated delta rule on the rows of a state that one simdgroup holds: see csrc/ops/gated_delta.cpp for the formula.
#pragma once

#include "common.h"

// g, linear, and beta of one token and value head.
struct Gates {
  float g;
  float beta;
};

inline Gates delta_gates(float a, float b, float A_log, float dt_bias) {
  Gates gates;
  gates.g = exp(-exp(A_log) * softplus(a + dt_bias));
  gates.beta = sigmoid(b);
  return gates;
}

// R rows of S [.., DK], of which a lane holds DK / 32 consecutive columns.
template <int DK, int R>
struct DeltaRows {
  enum { per_lane = DK / 32 };
  float S[R][DK / 32];

  void load(device const float* state, int lane) {
    UNROLL
    for (int r = 0; r < R; r++) {
      load_values<DK / 32>(state + r * DK + lane * per_lane, S[r]);
    }
  }

  void store(device float* state, int lane) const {
    UNROLL
    for (int r = 0; r < R; r++) {
      store_values<DK / 32>(state + r * DK + lane * per_lane, S[r]);
    }
  }

  // One token: q and k raw, this lane's columns; v of the R rows; y of the R rows on every lane.
  // All sums over columns are of the state before the token, so that they do not wait for one another:
  //   S' = g S + u k^T, u = beta (v - g S k), y = S' q = g S q + u (k . q)
  void step(
      const thread float (&q)[DK / 32], const thread float (&k)[DK / 32], const thread float (&v)[R], Gates gates,
      thread float (&y)[R]) {
    float qq = 0.0f;
    float kk = 0.0f;
    float kq = 0.0f;
    float Sk[R] = {};
    float Sq[R] = {};
    UNROLL
    for (int i = 0; i < per_lane; i++) {
      qq += q[i] * q[i];
      kk += k[i] * k[i];
      kq += k[i] * q[i];
      UNROLL
      for (int r = 0; r < R; r++) {
        Sk[r] += S[r][i] * k[i];
        Sq[r] += S[r][i] * q[i];
      }
    }
    const float q_factor = rsqrt(simd_sum(qq) + 1e-6f) * rsqrt(float(DK));
    const float k_factor = rsqrt(simd_sum(kk) + 1e-6f);
    const float kq_sum = simd_sum(kq) * k_factor;
    UNROLL
    for (int r = 0; r < R; r++) {
      const float u = gates.beta * (v[r] - gates.g * (simd_sum(Sk[r]) * k_factor));
      y[r] = (gates.g * simd_sum(Sq[r]) + u * kq_sum) * q_factor;
      UNROLL
      for (int i = 0; i < per_lane; i++) {
        S[r][i] = gates.g * S[r][i] + u * (k[i] * k_factor);
      }
    }
  }
};
