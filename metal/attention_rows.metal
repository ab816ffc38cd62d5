// attention_prepare and attention of several sequences, each with keys and values of its own, whose tokens are rows of
// one projection: see csrc/ops/attention_rows.cpp. A row is computed as by itself, whatever its sequence's others are.
//
// Keys and values are buffers of their own: 8 sequences in a launch. Rows, but those of projection, positions and y,
// are counted from the first of the launch on.
#include "attention.h"
#include "attention_prepare.h"
#include "sequences.h"

// Threadgroup (head, row).
template <typename T, typename C, int D>
[[kernel, max_total_threads_per_threadgroup(32)]] void attention_prepare_rows(
    device const T* projection [[buffer(0)]], device const float* q_norm [[buffer(1)]],
    device const float* k_norm [[buffer(2)]], device const int* positions [[buffer(3)]], device T* q [[buffer(4)]],
    device C* keys0 [[buffer(5)]], device C* keys1 [[buffer(6)]], device C* keys2 [[buffer(7)]],
    device C* keys3 [[buffer(8)]], device C* keys4 [[buffer(9)]], device C* keys5 [[buffer(10)]],
    device C* keys6 [[buffer(11)]], device C* keys7 [[buffer(12)]],
    device C* values0 [[buffer(13)]], device C* values1 [[buffer(14)]], device C* values2 [[buffer(15)]],
    device C* values3 [[buffer(16)]], device C* values4 [[buffer(17)]], device C* values5 [[buffer(18)]],
    device C* values6 [[buffer(19)]], device C* values7 [[buffer(20)]],
    constant AttentionPrepareRowsParams& p [[buffer(21)]], uint2 position [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float head_values[D];
  const int row = p.first[0] + int(position.y);
  const uint i = sequence_of(row, p.first);
  const int at = p.offset[i] + row - p.first[i];
  device C* const keys[MLX_DELTA_ATTENTION_SEQUENCES] = {keys0, keys1, keys2, keys3, keys4, keys5, keys6, keys7};
  device C* const values[MLX_DELTA_ATTENTION_SEQUENCES] = {values0, values1, values2, values3,
                                                           values4, values5, values6, values7};
  prepare_head<T, C, D>(
      projection + size_t(row) * size_t(2 * (p.Hq + p.Hkv) * D), q_norm, k_norm, positions + row, p.has_positions != 0,
      p.rows, at, q + size_t(position.y) * size_t(p.Hq * D), D, of_sequence(i, keys),
      of_sequence(i, values), p.S[i], at, p, int(position.x), int(lane), head_values);
}

// Threadgroup (split, heads, row). A row of fewer splits than others leaves some threadgroups idle.
template <typename T, typename C, int D, int G, int SIMDGROUPS>
[[kernel, max_total_threads_per_threadgroup(32 * SIMDGROUPS)]] void attention_rows(
    device const T* q [[buffer(0)]], device float* partial [[buffer(1)]],
    device const C* keys0 [[buffer(2)]], device const C* keys1 [[buffer(3)]], device const C* keys2 [[buffer(4)]],
    device const C* keys3 [[buffer(5)]], device const C* keys4 [[buffer(6)]], device const C* keys5 [[buffer(7)]],
    device const C* keys6 [[buffer(8)]], device const C* keys7 [[buffer(9)]],
    device const C* values0 [[buffer(10)]], device const C* values1 [[buffer(11)]],
    device const C* values2 [[buffer(12)]], device const C* values3 [[buffer(13)]],
    device const C* values4 [[buffer(14)]], device const C* values5 [[buffer(15)]],
    device const C* values6 [[buffer(16)]], device const C* values7 [[buffer(17)]],
    constant AttentionRowsParams& p [[buffer(18)]], uint3 position [[threadgroup_position_in_grid]],
    uint thread_ [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float maxima[G * SIMDGROUPS];
  threadgroup float sums[G * SIMDGROUPS];
  threadgroup float shared[D * SIMDGROUPS];
  const int split = int(position.x);
  const int first_head = int(position.y) * G;
  const uint i = sequence_of(p.first[0] + int(position.z), p.first);
  const int rows = p.offset[i] + p.first[0] + int(position.z) - p.first[i] + 1;  // of the cache
  const int wanted = splits_of(rows, p.most_splits);
  if (split >= wanted) {
    return;
  }
  const int split_rows = (rows + wanted - 1) / wanted;
  const int begin = split * split_rows;
  device const C* const keys[MLX_DELTA_ATTENTION_SEQUENCES] = {keys0, keys1, keys2, keys3, keys4, keys5, keys6, keys7};
  device const C* const values[MLX_DELTA_ATTENTION_SEQUENCES] = {values0, values1, values2, values3,
                                                                 values4, values5, values6, values7};
  const int key_head = first_head / (p.Hq / p.Hkv);
  const size_t cache = size_t(key_head) * size_t(p.S[i]) * size_t(D / 32 * row_units(keys0));
  const size_t head = size_t(position.z) * size_t(p.Hq) + size_t(first_head);
  attend_split<T, C, D, G, SIMDGROUPS>(
      q + head * size_t(D), D, of_sequence(i, keys) + cache, of_sequence(i, values) + cache,
      partial + (head * size_t(p.splits) + size_t(split)) * size_t(D + 2), p.splits, p.scale, begin,
      min(begin + split_rows, rows), thread_, int(simdgroup), lane, maxima, sums, shared);
}

// Threadgroup (head, row).
template <typename T, int D>
[[kernel, max_total_threads_per_threadgroup(D)]] void attention_combine_rows(
    device const T* projection [[buffer(0)]], device const float* partial [[buffer(1)]], device T* y [[buffer(2)]],
    constant AttentionRowsParams& p [[buffer(3)]], uint2 position [[threadgroup_position_in_grid]],
    uint d [[thread_index_in_threadgroup]]) {
  const int head = int(position.x);
  const int row = p.first[0] + int(position.y);
  const uint i = sequence_of(row, p.first);
  const int splits = splits_of(p.offset[i] + row - p.first[i] + 1, p.most_splits);
  const size_t from = (size_t(position.y) * size_t(p.Hq) + size_t(head)) * size_t(p.splits);
  combine_splits<T, D>(
      partial + from * size_t(D + 2), splits, projection + size_t(row) * size_t(p.width) + size_t((2 * head + 1) * D),
      y + (size_t(row) * size_t(p.Hq) + size_t(head)) * size_t(D), int(d));
}
