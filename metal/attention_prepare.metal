// Query/key RMSNorm, rotary embedding and the append to the KV cache: see csrc/ops/attention_prepare.cpp.
#include "attention_prepare.h"

// Threadgroup (head, t, b).
template <typename T, typename C, int D, bool POSITIONS>
[[kernel, max_total_threads_per_threadgroup(32)]] void attention_prepare(
    device const T* projection [[buffer(0)]], device const float* q_norm [[buffer(1)]],
    device const float* k_norm [[buffer(2)]], device const int* positions [[buffer(3)]], device T* q [[buffer(4)]],
    device C* keys [[buffer(5)]], device C* values [[buffer(6)]], constant AttentionPrepareParams& p [[buffer(7)]],
    uint3 position [[threadgroup_position_in_grid]], uint3 grid [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float head_values[D];
  const int t = int(position.y);
  const int b = int(position.z);
  const int token = b * p.T + t;
  const size_t cache = size_t(b * p.Hkv) * size_t(p.S) * size_t(D / 32 * row_units(keys));
  prepare_head<T, C, D>(
      projection + size_t(token) * size_t(2 * (p.Hq + p.Hkv) * D), q_norm, k_norm, positions + token, POSITIONS,
      int(grid.z) * p.T, p.offset + t, q + (size_t(b * p.Hq) * size_t(p.T) + size_t(t)) * size_t(D), p.T * D,
      keys + cache, values + cache, p.S, p.offset + t, p, int(position.x), int(lane), head_values);
}
