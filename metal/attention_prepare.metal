// Query/key RMSNorm, rotary embedding and the append to the KV cache: see csrc/ops/attention_prepare.cpp.
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
template <typename T, typename C, int D, bool POSITIONS>
[[kernel, max_total_threads_per_threadgroup(32)]] void attention_prepare(
    device const T* projection [[buffer(0)]], device const float* q_norm [[buffer(1)]],
    device const float* k_norm [[buffer(2)]], device const int* positions [[buffer(3)]], device T* q [[buffer(4)]],
    device C* keys [[buffer(5)]], device C* values [[buffer(6)]], constant AttentionPrepareParams& p [[buffer(7)]],
    uint3 position [[threadgroup_position_in_grid]], uint3 grid [[threadgroups_per_grid]],
    uint lane_ [[thread_index_in_simdgroup]]) {
  const int per_lane = D / 32;
  threadgroup float head_values[D];
  const int lane = int(lane_);
  const int head = int(position.x);
  const int t = int(position.y);
  const int b = int(position.z);
  const int token = b * p.T + t;
  const bool is_query = head < p.Hq;
  const bool is_value = head >= p.Hq + p.Hkv;
  const int column = is_query ? 2 * head * D : (p.Hq + head) * D;
  device const T* in = projection + size_t(token) * size_t(2 * (p.Hq + p.Hkv) * D) + size_t(column);
  const int cache_head = is_value ? head - p.Hq - p.Hkv : head - p.Hq;
  const size_t row =
      (size_t(b * p.Hkv + cache_head) * size_t(p.S) + size_t(p.offset + t)) * size_t(per_lane * row_units(keys));
  if (is_value) {
    T value[per_lane];
    UNROLL
    for (int i = 0; i < per_lane; i++) {
      value[i] = in[lane + 32 * i];
    }
    store_row<per_lane>(values + row, lane, value);
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
      const int at = POSITIONS ? positions[axis * int(grid.z) * p.T + token] : p.offset + t;
      const float angle = float(at) * p.frequencies[f];
      const float across = e < p.rope_half ? -head_values[e + p.rope_half] : head_values[e - p.rope_half];
      // fma: the same bits with and without POSITIONS.
      turned = fma(h[i], precise::cos(angle), across * precise::sin(angle));
    }
    out[i] = T(turned);
  }
  if (is_query) {
    store_row<per_lane>(q + (size_t(b * p.Hq + head) * size_t(p.T) + size_t(t)) * size_t(D), lane, out);
  } else {
    store_row<per_lane>(keys + row, lane, out);
  }
}
