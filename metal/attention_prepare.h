// What a simdgroup of attention_prepare does, of a batch or of sequences that have keys and values of their own: see
// csrc/ops/attention_prepare.cpp for the formula.
#pragma once

#include "common.h"
#include "kv_row.h"
#include "params.h"

// A simdgroup a head and token: query, key or value heads side by side in the grid. Bytes: the new q, k and v once in
// and once out, 24 KB for the 9B; the gates are left where they are, for attention to read, and the cache's other rows
// are not touched. Threads: 32 a head, 768 a token for the 9B; loads in flight: D / 32 values a thread, 512 bytes a
// simdgroup in half types. Registers: D / 32 values of the head, an angle with its sine and cosine, about 25. Small:
// the time is the launch's own. The frequencies come from the host, which computes them in double: one unit in their
// last place would be a visible angle at position 100000.
//
// Keys and values are of C: T, or char, which stands for rows of kv_row.h, made of what T would hold.
//
// in: the token's projection. positions: the token's, on the first axis, those of the others of_axis behind one
// another; without, they are `at`. q: of the token's first head, those of the others q_stride behind one another. keys,
// values: of the sequence's first head, S rows each; the new row is row `row` of each. head_values: threadgroup memory.
template <typename T, typename C, int D, typename P>
inline void prepare_head(
    device const T* in, device const float* q_norm, device const float* k_norm, device const int* positions,
    bool has_positions, int of_axis, int at, device T* q, int q_stride, device C* keys, device C* values, int S,
    int row, constant P& p, int head, int lane, threadgroup float (&head_values)[D]) {
  const int per_lane = D / 32;
  const bool is_query = head < p.Hq;
  const bool is_value = head >= p.Hq + p.Hkv;
  in += is_query ? 2 * head * D : (p.Hq + head) * D;
  const int cache_head = is_value ? head - p.Hq - p.Hkv : head - p.Hq;
  const size_t of_row = (size_t(cache_head) * size_t(S) + size_t(row)) * size_t(per_lane * row_units(keys));
  if (is_value) {
    T value[per_lane];
    UNROLL
    for (int i = 0; i < per_lane; i++) {
      value[i] = in[lane + 32 * i];
    }
    store_row<per_lane>(values + of_row, lane, value);
    return;
  }

  float h[per_lane];
  float squares = 0.0f;
  UNROLL
  for (int i = 0; i < per_lane; i++) {
    h[i] = float(in[lane + 32 * i]);
    squares = fma(h[i], h[i], squares);
  }
  const float inverse = precise::rsqrt(simd_sum(squares) / float(D) + p.eps);
  device const float* norm = is_query ? q_norm : k_norm;
  UNROLL
  for (int i = 0; i < per_lane; i++) {
    h[i] = h[i] * inverse * norm[lane + 32 * i];
    head_values[lane + 32 * i] = h[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  T out[per_lane];
  UNROLL
  for (int i = 0; i < per_lane; i++) {
    const int e = lane + 32 * i;
    float turned = h[i];
    if (e < 2 * p.rope_half) {
      const int f = e < p.rope_half ? e : e - p.rope_half;
      const int axis = f % 3 != 0 && f / 3 < p.sections[f % 3] ? f % 3 : 0;
      const float angle = float(has_positions ? positions[axis * of_axis] : at) * p.frequencies[f];
      const float across = e < p.rope_half ? -head_values[e + p.rope_half] : head_values[e - p.rope_half];
      // fma: the same bits with and without positions.
      turned = fma(h[i], precise::cos(angle), across * precise::sin(angle));
    }
    out[i] = T(turned);
  }
  if (is_query) {
    store_row<per_lane>(q + size_t(head) * size_t(q_stride), lane, out);
  } else {
    store_row<per_lane>(keys + of_row, lane, out);
  }
}
