// Causal attention over the KV cache times the sigmoid of the gate, for few new tokens: see csrc/ops/attention.cpp.
#include "attention.h"

// Threadgroup (split, heads, token). Splits are counted from where the sequence begins: padding on its left does not
// change a bit of it.
template <typename T, typename C, int D, int G, int SIMDGROUPS, bool START>
[[kernel, max_total_threads_per_threadgroup(32 * SIMDGROUPS)]] void attention(
    device const T* q [[buffer(0)]], device const C* keys [[buffer(1)]], device const C* values [[buffer(2)]],
    device const int* start [[buffer(3)]], device float* partial [[buffer(4)]],
    constant AttentionParams& p [[buffer(5)]], uint3 position [[threadgroup_position_in_grid]],
    uint thread_ [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float maxima[G * SIMDGROUPS];
  threadgroup float sums[G * SIMDGROUPS];
  threadgroup float shared[D * SIMDGROUPS];
  const int split = int(position.x);
  const int first_head = int(position.y) * G;
  const int token = int(position.z);
  const int b = token / p.T;
  const int t = token % p.T;
  const int key_head = first_head / (p.Hq / p.Hkv);
  const size_t cache = size_t(b * p.Hkv + key_head) * size_t(p.S) * size_t(D / 32 * row_units(keys));
  const int visible = p.length - p.T + t + 1;
  const int first_row = START ? max(start[b], 0) : 0;
  const int rows = max(p.length - first_row, 1);  // of this sequence
  const int wanted = splits_of(rows, p.splits);
  const int split_rows = (rows + wanted - 1) / wanted;
  const int begin = first_row + split * split_rows;
  const size_t row = (size_t(token) * size_t(p.Hq) + size_t(first_head)) * size_t(p.splits) + size_t(split);
  attend_split<T, C, D, G, SIMDGROUPS>(
      q + (size_t(b * p.Hq + first_head) * size_t(p.T) + size_t(t)) * size_t(D), p.T * D, keys + cache, values + cache,
      partial + row * size_t(D + 2), p.splits, p.scale, begin, min(begin + split_rows, visible), thread_,
      int(simdgroup), lane, maxima, sums, shared);
}

// Threadgroup (head, token).
template <typename T, int D>
[[kernel, max_total_threads_per_threadgroup(D)]] void attention_combine(
    device const T* projection [[buffer(0)]], device const float* partial [[buffer(1)]], device T* y [[buffer(2)]],
    constant AttentionParams& p [[buffer(3)]], uint2 position [[threadgroup_position_in_grid]],
    uint d [[thread_index_in_threadgroup]]) {
  const int head = int(position.x);
  const size_t token = size_t(position.y);
  const size_t row = token * size_t(p.Hq) + size_t(head);
  combine_splits<T, D>(
      partial + row * size_t(p.splits) * size_t(D + 2), p.splits,
      projection + token * size_t(p.width) + size_t((2 * head + 1) * D), y + row * size_t(D), int(d));
}
