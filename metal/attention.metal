// Causal attention over the KV cache times the sigmoid of the gate, for few new tokens: see csrc/ops/attention.cpp.
#include "common.h"
#include "params.h"

// Query heads that share a key head go together, G at a time, so that the cache is read once for them. A long context
// is split: threadgroup (split, heads, token) takes its rows of the cache, the simdgroups in turns of KEYS rows, with a
// running maximum and sum; they meet in threadgroup memory at the end, one head after the other. With PARTIAL the
// result of a split goes to scratch as [D sums, maximum, sum], for attention_combine. Splits are counted from where the
// sequence begins and are as long as its own length asks for: padding on its left does not change a bit of it.
//
// Bytes: keys and values once (G divides the group for the 9B's 4:1), q and gate once per split. Threads: 256 a split
// and G heads, 65536 for the 9B from 8192 rows on. Loads in flight: KEYS rows of keys, then of values, 16 bytes a load
// at D = 256: 2 KB a simdgroup in half types, 16 KB a threadgroup. Registers: G D / 32 each for q and the sums (64 for
// the 9B), D / 32 for a key or value, 2 G KEYS scores, about 110. Out is T, or float with PARTIAL.
template <typename T, typename Out, int D, int G, int SIMDGROUPS, bool START, bool PARTIAL>
[[kernel, max_total_threads_per_threadgroup(32 * SIMDGROUPS)]] void attention(
    device const T* q [[buffer(0)]], device const T* projection [[buffer(1)]], device const T* keys [[buffer(2)]],
    device const T* values [[buffer(3)]], device const int* start [[buffer(4)]], device Out* y [[buffer(5)]],
    constant AttentionParams& p [[buffer(6)]], uint3 position [[threadgroup_position_in_grid]],
    uint thread_ [[thread_index_in_threadgroup]],
    uint simdgroup_ [[simdgroup_index_in_threadgroup]], uint lane_ [[thread_index_in_simdgroup]]) {
  const int KEYS = 4;
  const int per_lane = D / 32;
  threadgroup float maxima[G * SIMDGROUPS];
  threadgroup float sums[G * SIMDGROUPS];
  threadgroup float shared[D * SIMDGROUPS];

  const int lane = int(lane_);
  const int simdgroup = int(simdgroup_);
  const int split = int(position.x);
  const int first_head = int(position.y) * G;
  const int token = int(position.z);
  const int b = token / p.T;
  const int t = token % p.T;
  const int key_head = first_head / (p.Hq / p.Hkv);
  const size_t cache = size_t(b * p.Hkv + key_head) * size_t(p.S) * size_t(D) + size_t(lane * per_lane);
  const int visible = p.length - p.T + t + 1;
  const int first_row = START ? max(start[b], 0) : 0;
  const int rows = max(p.length - first_row, 1);  // of this sequence
  const int wanted = min(p.splits, (rows + MLX_DELTA_LEAST_SPLIT_ROWS - 1) / MLX_DELTA_LEAST_SPLIT_ROWS);
  const int split_rows = (rows + wanted - 1) / wanted;
  const int begin = first_row + split * split_rows;
  const int end = min(begin + split_rows, visible);

  float query[G][per_lane];
  float total[G][per_lane];
  float maximum[G];
  float sum[G];
  UNROLL
  for (int g = 0; g < G; g++) {
    device const T* from = q + (size_t(b * p.Hq + first_head + g) * size_t(p.T) + size_t(t)) * size_t(D);
    load_values<per_lane>(from + lane * per_lane, query[g]);
    UNROLL
    for (int i = 0; i < per_lane; i++) {
      query[g][i] *= p.scale;
      total[g][i] = 0.0f;
    }
    maximum[g] = -INFINITY;
    sum[g] = 0.0f;
  }

  for (int s = begin + simdgroup * KEYS; s < end; s += SIMDGROUPS * KEYS) {
    float score[G][KEYS];
    UNROLL
    for (int j = 0; j < KEYS; j++) {
      device const T* from = keys + cache + size_t(min(s + j, end - 1)) * size_t(D);
      float k[per_lane];
      load_values<per_lane>(from, k);
      UNROLL
      for (int g = 0; g < G; g++) {
        float product = 0.0f;
        UNROLL
        for (int i = 0; i < per_lane; i++) {
          product += query[g][i] * k[i];
        }
        score[g][j] = product;
      }
    }
    UNROLL
    for (int g = 0; g < G; g++) {
      float highest = maximum[g];
      UNROLL
      for (int j = 0; j < KEYS; j++) {
        const float of_key = simd_sum(score[g][j]);
        score[g][j] = s + j < end ? of_key : -INFINITY;
        highest = max(highest, score[g][j]);
      }
      const float factor = exp(maximum[g] - highest);  // 0 the first time: the maximum is then -infinity
      maximum[g] = highest;
      sum[g] *= factor;
      UNROLL
      for (int j = 0; j < KEYS; j++) {
        score[g][j] = exp(score[g][j] - highest);
        sum[g] += score[g][j];
      }
      UNROLL
      for (int i = 0; i < per_lane; i++) {
        total[g][i] *= factor;
      }
    }
    UNROLL
    for (int j = 0; j < KEYS; j++) {
      float v[per_lane];
      load_values<per_lane>(values + cache + size_t(min(s + j, end - 1)) * size_t(D), v);
      UNROLL
      for (int i = 0; i < per_lane; i++) {
        UNROLL
        for (int g = 0; g < G; g++) {
          total[g][i] += score[g][j] * v[i];
        }
      }
    }
  }

  if (lane == 0) {
    UNROLL
    for (int g = 0; g < G; g++) {
      maxima[g * SIMDGROUPS + simdgroup] = maximum[g];
      sums[g * SIMDGROUPS + simdgroup] = sum[g];
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  UNROLL
  for (int g = 0; g < G; g++) {
    float highest = -INFINITY;
    for (int i = 0; i < SIMDGROUPS; i++) {
      highest = max(highest, maxima[g * SIMDGROUPS + i]);
    }
    float whole = 0.0f;
    for (int i = 0; i < SIMDGROUPS; i++) {
      const float of_simdgroup = maxima[g * SIMDGROUPS + i];
      whole += of_simdgroup == -INFINITY ? 0.0f : sums[g * SIMDGROUPS + i] * exp(of_simdgroup - highest);
    }
    const float factor = maximum[g] == -INFINITY ? 0.0f : exp(maximum[g] - highest);
    UNROLL
    for (int i = 0; i < per_lane; i++) {
      shared[simdgroup * D + lane * per_lane + i] = total[g][i] * factor;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const int head = first_head + g;
    for (int d = int(thread_); d < D; d += 32 * SIMDGROUPS) {
      float value = 0.0f;
      for (int i = 0; i < SIMDGROUPS; i++) {
        value += shared[i * D + d];
      }
      if (PARTIAL) {
        const size_t row = (size_t(token) * size_t(p.Hq) + size_t(head)) * size_t(p.splits) + size_t(split);
        device Out* out = y + row * size_t(D + 2);
        out[d] = Out(value);
        if (d == 0) {
          out[D] = Out(highest);
          out[D + 1] = Out(whole);
        }
      } else {
        const float gate = float(projection[size_t(token) * size_t(p.width) + size_t((2 * head + 1) * D + d)]);
        const float seen = whole == 0.0f ? 0.0f : value / whole;  // a padding token sees nothing
        y[(size_t(token) * size_t(p.Hq) + size_t(head)) * size_t(D) + size_t(d)] = Out(seen * sigmoid(gate));
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// The splits of one head and token put together. A thread a value. Bytes: D + 2 floats a split, 1 KB for the 9B, from
// the last-level cache, where the launch before left them. Threads: Hq D a token, 4096 for the 9B. Loads in flight: one
// float a thread and split, consecutive over threads. Registers: about 15.
template <typename T, int D>
[[kernel, max_total_threads_per_threadgroup(D)]] void attention_combine(
    device const T* projection [[buffer(0)]], device const float* partial [[buffer(1)]], device T* y [[buffer(2)]],
    constant AttentionParams& p [[buffer(3)]], uint2 position [[threadgroup_position_in_grid]],
    uint thread_ [[thread_index_in_threadgroup]]) {
  const int d = int(thread_);
  const int head = int(position.x);
  const size_t token = size_t(position.y);
  const size_t row = token * size_t(p.Hq) + size_t(head);
  device const float* from = partial + row * size_t(p.splits) * size_t(D + 2);
  float highest = -INFINITY;
  for (int s = 0; s < p.splits; s++) {
    highest = max(highest, from[s * (D + 2) + D]);
  }
  float value = 0.0f;
  float whole = 0.0f;
  for (int s = 0; s < p.splits; s++) {
    const float maximum = from[s * (D + 2) + D];
    const float factor = maximum == -INFINITY ? 0.0f : exp(maximum - highest);
    value += factor * from[s * (D + 2) + d];
    whole += factor * from[s * (D + 2) + D + 1];
  }
  const float gate = float(projection[token * size_t(p.width) + size_t((2 * head + 1) * D + d)]);
  const float seen = whole == 0.0f ? 0.0f : value / whole;
  y[row * size_t(D) + size_t(d)] = T(seen * sigmoid(gate));
}
