// Causal attention over the KV cache times the sigmoid of the gate, for few new tokens: see csrc/ops/attention.cpp.
#include "common.h"
#include "kv_row.h"
#include "params.h"

// exp(x - highest). 1 where that is 0, which fast::exp() need not be: totals are multiplied by it again and again.
inline float part_of(float x, float highest) { return x == highest ? 1.0f : fast::exp(x - highest); }

// Query heads that share a key head go together, G at a time, so that the cache is read once for them. A long context
// is split: threadgroup (split, heads, token) takes its rows of the cache, the simdgroups in turns of KEYS rows, with a
// running maximum and sum; they meet in threadgroup memory at the end, one head after the other. The result of a split
// is [D sums, maximum, sum], for attention_combine. Splits are counted from where the sequence begins and are as long
// as its own length asks for: padding on its left does not change a bit of it. A context of one split takes both
// launches too: other kernels for it would mean a pause in an answer, while those for longer ones are compiled.
//
// Keys and values are of C: T, or char, which stands for rows of kv_row.h. Their scales multiply a product of a key,
// and the part that a value has, once for G heads each.
//
// Bytes: keys and values once (G divides the group for the 9B's 4:1), q and gate once per split. Threads: 128 a split
// and G heads, 32768 for the 9B from 8192 rows on. Loads in flight: KEYS rows of keys, then of values, 16 bytes a load
// at D = 256: 2 KB a simdgroup in half types, 8 KB a threadgroup. Registers: G D / 32 each for q and the sums (64 for
// the 9B), D / 32 for a key or value, 2 G KEYS scores, about 110.
template <typename T, typename C, int D, int G, int SIMDGROUPS, bool START>
[[kernel, max_total_threads_per_threadgroup(32 * SIMDGROUPS)]] void attention(
    device const T* q [[buffer(0)]], device const C* keys [[buffer(1)]], device const C* values [[buffer(2)]],
    device const int* start [[buffer(3)]], device float* partial [[buffer(4)]],
    constant AttentionParams& p [[buffer(5)]], uint3 position [[threadgroup_position_in_grid]],
    uint thread_ [[thread_index_in_threadgroup]], uint simdgroup_ [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const int KEYS = 4;
  const int per_lane = D / 32;
  const int heads = G == 3 ? 4 : G;  // a power of two
  threadgroup float maxima[G * SIMDGROUPS];
  threadgroup float sums[G * SIMDGROUPS];
  threadgroup float shared[D * SIMDGROUPS];

  const int simdgroup = int(simdgroup_);
  const int split = int(position.x);
  const int first_head = int(position.y) * G;
  const int token = int(position.z);
  const int b = token / p.T;
  const int t = token % p.T;
  const int key_head = first_head / (p.Hq / p.Hkv);
  const size_t cache = size_t(b * p.Hkv + key_head) * size_t(p.S) * size_t(per_lane * row_units(keys));
  const int visible = p.length - p.T + t + 1;
  const int first_row = START ? max(start[b], 0) : 0;
  const int rows = max(p.length - first_row, 1);  // of this sequence
  const int wanted = min(p.splits, (rows + MLX_DELTA_LEAST_SPLIT_ROWS - 1) / MLX_DELTA_LEAST_SPLIT_ROWS);
  const int split_rows = (rows + wanted - 1) / wanted;
  const int begin = first_row + split * split_rows;
  const int end = min(begin + split_rows, visible);

  // Scores are summed over lanes all at once, after which a lane has one of them, and probabilities go back one by one.
  const uint lanes = 32 / (heads * KEYS);  // that have the same score
  const int own_key = int(lane / lanes) % KEYS;
  float query[G][per_lane];
  float total[G][per_lane];
  float sum[G];
  float maximum = -INFINITY;  // of this lane's head
  UNROLL
  for (int g = 0; g < G; g++) {
    load_at<per_lane>(q + (size_t(b * p.Hq + first_head + g) * size_t(p.T) + size_t(t)) * size_t(D), lane, query[g]);
    UNROLL
    for (int i = 0; i < per_lane; i++) {
      query[g][i] *= p.scale;
      total[g][i] = 0.0f;
    }
    sum[g] = 0.0f;
  }

  KEEP_LOOP
  for (int s = begin + simdgroup * KEYS; s < end; s += SIMDGROUPS * KEYS) {
    float score[heads * KEYS] = {};
    UNROLL
    for (int j = 0; j < KEYS; j++) {
      float k[per_lane];
      const float scale = load_row<per_lane>(keys + cache, uint(min(s + j, end - 1)), lane, k);
      UNROLL
      for (int g = 0; g < G; g++) {
        float product = 0.0f;
        UNROLL
        for (int i = 0; i < per_lane; i++) {
          product = fma(query[g][i], k[i], product);
        }
        score[g * KEYS + j] = product * scale;
      }
    }
    const float of_key = sum_over_lanes(score, lane);
    const float own = s + own_key < end ? of_key : -INFINITY;
    float highest = max(own, simd_shuffle_xor(own, ushort(lanes)));
    highest = max(maximum, max(highest, simd_shuffle_xor(highest, ushort(2 * lanes))));
    const float own_factor = part_of(maximum, highest);  // 0 the first time: the maximum is then -infinity
    const float own_part = part_of(own, highest);
    maximum = highest;
    float part[G][KEYS];
    UNROLL
    for (int g = 0; g < G; g++) {
      const float factor = simd_broadcast(own_factor, ushort(uint(g * KEYS) * lanes));
      UNROLL
      for (int j = 0; j < KEYS; j++) {
        part[g][j] = simd_broadcast(own_part, ushort(uint(g * KEYS + j) * lanes));
        sum[g] = j == 0 ? fma(sum[g], factor, part[g][j]) : sum[g] + part[g][j];
      }
      UNROLL
      for (int i = 0; i < per_lane; i++) {
        total[g][i] *= factor;
      }
    }
    UNROLL
    for (int j = 0; j < KEYS; j++) {
      float v[per_lane];
      const float scale = load_row<per_lane>(values + cache, uint(min(s + j, end - 1)), lane, v);
      float scaled[G];
      UNROLL
      for (int g = 0; g < G; g++) {
        scaled[g] = part[g][j] * scale;
      }
      UNROLL
      for (int i = 0; i < per_lane; i++) {
        UNROLL
        for (int g = 0; g < G; g++) {
          total[g][i] = fma(scaled[g], v[i], total[g][i]);
        }
      }
    }
  }

  float highest_of[G];
  UNROLL
  for (int g = 0; g < G; g++) {
    highest_of[g] = simd_broadcast(maximum, ushort(uint(g * KEYS) * lanes));
  }
  if (lane == 0) {
    UNROLL
    for (int g = 0; g < G; g++) {
      maxima[g * SIMDGROUPS + simdgroup] = highest_of[g];
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
      const float part = of_simdgroup == -INFINITY ? 0.0f : part_of(of_simdgroup, highest);
      whole = fma(sums[g * SIMDGROUPS + i], part, whole);
    }
    const float factor = highest_of[g] == -INFINITY ? 0.0f : part_of(highest_of[g], highest);
    UNROLL
    for (int i = 0; i < per_lane; i++) {
      shared[simdgroup * D + int(lane) * per_lane + i] = total[g][i] * factor;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const size_t row = (size_t(token) * size_t(p.Hq) + size_t(first_head + g)) * size_t(p.splits) + size_t(split);
    device float* out = partial + row * size_t(D + 2);
    for (int d = int(thread_); d < D; d += 32 * SIMDGROUPS) {
      float value = 0.0f;
      for (int i = 0; i < SIMDGROUPS; i++) {
        value += shared[i * D + d];
      }
      out[d] = value;
    }
    if (thread_ == 0) {
      out[D] = highest;
      out[D + 1] = whole;
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
    const float factor = maximum == -INFINITY ? 0.0f : part_of(maximum, highest);
    value = fma(factor, from[s * (D + 2) + d], value);
    whole = fma(factor, from[s * (D + 2) + D + 1], whole);
  }
  const float gate = float(projection[token * size_t(p.width) + size_t((2 * head + 1) * D + d)]);
  const float seen = whole == 0.0f ? 0.0f : value / whole;  // a padding token sees nothing
  y[row * size_t(D) + size_t(d)] = T(seen * sigmoid(gate));
}
