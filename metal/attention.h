// What a threadgroup of attention's two launches does, of a batch or of sequences that have keys and values of their
// own: see csrc/ops/attention.cpp for the formula.
#pragma once

#include "common.h"
#include "kv_row.h"
#include "params.h"

// exp(x - highest). 1 where that is 0, which fast::exp() need not be: totals are multiplied by it again and again.
inline float part_of(float x, float highest) { return x == highest ? 1.0f : fast::exp(x - highest); }

// Into how many splits a context of so many rows is cut: as its own length asks for, whatever else is computed.
inline int splits_of(int rows, int most) {
  return min(most, (rows + MLX_DELTA_LEAST_SPLIT_ROWS - 1) / MLX_DELTA_LEAST_SPLIT_ROWS);
}

// Query heads that share a key head go together, G at a time, so that the cache is read once for them. A long context
// is split: a threadgroup takes the rows [begin, end) of the cache, the simdgroups in turns of KEYS rows, with a
// running maximum and sum; they meet in threadgroup memory at the end, one head after the other. The result of a split
// is [D sums, maximum, sum], for combine_splits. A context of one split takes both launches too: other kernels for it
// would mean a pause in an answer, while those for longer ones are compiled.
//
// Keys and values are of C: T, or char, which stands for rows of kv_row.h. Their scales multiply a product of a key,
// and the part that a value has, once for G heads each.
//
// Bytes: keys and values once (G divides the group for the 9B's 4:1), q and gate once per split. Threads: 128 a split
// and G heads, 32768 for the 9B from 8192 rows on. Loads in flight: KEYS rows of keys, then of values, 16 bytes a load
// at D = 256: 2 KB a simdgroup in half types, 8 KB a threadgroup. Registers: G D / 32 each for q and the sums (64 for
// the 9B), D / 32 for a key or value, 2 G KEYS scores, about 110.
//
// q, partial: of the first head, those of the others behind it: q_stride values apart, and `splits` results.
template <typename T, typename C, int D, int G, int SIMDGROUPS>
inline void attend_split(
    device const T* q, int q_stride, device const C* keys, device const C* values, device float* partial, int splits,
    float scale, int begin, int end, uint thread_, int simdgroup, uint lane,
    threadgroup float (&maxima)[G * SIMDGROUPS], threadgroup float (&sums)[G * SIMDGROUPS],
    threadgroup float (&shared)[D * SIMDGROUPS]) {
  const int KEYS = 4;
  const int per_lane = D / 32;
  const int heads = G == 3 ? 4 : G;  // a power of two

  // Scores are summed over lanes all at once, after which a lane has one of them, and probabilities go back one by one.
  const uint lanes = 32 / (heads * KEYS);  // that have the same score
  const int own_key = int(lane / lanes) % KEYS;
  float query[G][per_lane];
  float total[G][per_lane];
  float sum[G];
  float maximum = -INFINITY;  // of this lane's head
  UNROLL
  for (int g = 0; g < G; g++) {
    load_at<per_lane>(q + size_t(g * q_stride), lane, query[g]);
    UNROLL
    for (int i = 0; i < per_lane; i++) {
      query[g][i] *= scale;
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
      const float of_row = load_row<per_lane>(keys, uint(min(s + j, end - 1)), lane, k);
      UNROLL
      for (int g = 0; g < G; g++) {
        float product = 0.0f;
        UNROLL
        for (int i = 0; i < per_lane; i++) {
          product = fma(query[g][i], k[i], product);
        }
        score[g * KEYS + j] = product * of_row;
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
      const float of_row = load_row<per_lane>(values, uint(min(s + j, end - 1)), lane, v);
      float scaled[G];
      UNROLL
      for (int g = 0; g < G; g++) {
        scaled[g] = part[g][j] * of_row;
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
    device float* out = partial + size_t(g * splits) * size_t(D + 2);
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

// The splits of one head and token put together; from, gates, y: of that head. A thread a value. Bytes: D + 2 floats a
// split, 1 KB for the 9B, from the last-level cache, where the launch before left them. Threads: Hq D a token, 4096 for
// the 9B. Loads in flight: one float a thread and split, consecutive over threads. Registers: about 15.
template <typename T, int D>
inline void combine_splits(device const float* from, int splits, device const T* gates, device T* y, int d) {
  float highest = -INFINITY;
  for (int s = 0; s < splits; s++) {
    highest = max(highest, from[s * (D + 2) + D]);
  }
  float value = 0.0f;
  float whole = 0.0f;
  for (int s = 0; s < splits; s++) {
    const float maximum = from[s * (D + 2) + D];
    const float factor = maximum == -INFINITY ? 0.0f : part_of(maximum, highest);
    value = fma(factor, from[s * (D + 2) + d], value);
    whole = fma(factor, from[s * (D + 2) + D + 1], whole);
  }
  const float gate = float(gates[d]);
  const float seen = whole == 0.0f ? 0.0f : value / whole;  // a padding token sees nothing
  y[d] = T(seen * sigmoid(gate));
}
