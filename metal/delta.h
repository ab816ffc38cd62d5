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
  gates.g = precise::exp(-precise::exp(A_log) * softplus(a + dt_bias));
  gates.beta = sigmoid(b);
  return gates;
}

// R rows of S [.., DK], of which a lane holds DK / 32 consecutive columns.
template <int DK, int R>
struct DeltaRows {
  enum { per_lane = DK / 32, lanes_of_row = 32 / R };
  float S[R][DK / 32];

  // Which row a lane has the results of; its first lane stores them.
  static uint row_of(uint lane) { return lane / uint(lanes_of_row); }
  static bool stores(uint lane) { return lane % uint(lanes_of_row) == 0; }

  void load(device const float* state, uint lane) thread {
    UNROLL
    for (int r = 0; r < R; r++) {
      load_at<DK / 32>(state + r * DK, lane, S[r]);
    }
  }

  void store(device float* state, uint lane) const thread {
    UNROLL
    for (int r = 0; r < R; r++) {
      store_at<DK / 32>(state + r * DK, lane, S[r]);
    }
  }

  // One token: q and k raw, this lane's columns; v, and the y that comes out, of row row_of(lane).
  // All sums over columns are of the state before the token, so that they do not wait for one another:
  //   S' = g S + u k^T, u = beta (v - g S k), y = S' q = g S q + u (k . q)
  // fma is written out, so that a token has the same bits however many come with it.
  float step(
      const thread float (&q)[DK / 32], const thread float (&k)[DK / 32], float v, Gates gates, uint lane) thread {
    float of_keys[4] = {};      // q . q, k . k, k . q
    float of_rows[2 * R] = {};  // S k and S q of each row
    UNROLL
    for (int i = 0; i < per_lane; i++) {
      of_keys[0] = fma(q[i], q[i], of_keys[0]);
      of_keys[1] = fma(k[i], k[i], of_keys[1]);
      of_keys[2] = fma(k[i], q[i], of_keys[2]);
      UNROLL
      for (int r = 0; r < R; r++) {
        of_rows[2 * r] = fma(S[r][i], k[i], of_rows[2 * r]);
        of_rows[2 * r + 1] = fma(S[r][i], q[i], of_rows[2 * r + 1]);
      }
    }
    const float of_key = sum_over_lanes(of_keys, lane);
    const float q_factor = precise::rsqrt(simd_broadcast(of_key, ushort(0)) + 1e-6f) * precise::rsqrt(float(DK));
    const float k_factor = precise::rsqrt(simd_broadcast(of_key, ushort(8)) + 1e-6f);
    const float kq_sum = simd_broadcast(of_key, ushort(16)) * k_factor;
    const float one = sum_over_lanes(of_rows, lane);
    const float other = simd_shuffle_xor(one, ushort(lanes_of_row / 2));
    const bool is_k = lane % uint(lanes_of_row) < uint(lanes_of_row / 2);
    const float Sk = is_k ? one : other;
    const float Sq = is_k ? other : one;
    const float u = gates.beta * fma(-gates.g, Sk * k_factor, v);
    UNROLL
    for (int r = 0; r < R; r++) {
      const float of_row = simd_broadcast(u, ushort(r * int(lanes_of_row)));
      UNROLL
      for (int i = 0; i < per_lane; i++) {
        S[r][i] = fma(gates.g, S[r][i], of_row * (k[i] * k_factor));
      }
    }
    return fma(gates.g, Sq, u * kq_sum) * q_factor;
  }
};
