// What several kernels share. All of them convert to float when they load and round once, when they store.
#pragma once

#include <metal_stdlib>

using namespace metal;

#define UNROLL _Pragma("clang loop unroll(full)")
// Loops that keep their registers small only as long as they are loops.
#define KEEP_LOOP _Pragma("clang loop unroll(disable)")

// Four consecutive values; `from` is aligned to four of them.
template <typename T>
inline void load4(device const T* from, thread float* to) {
  const vec<T, 4> v = *(device const vec<T, 4>*)from;
  UNROLL
  for (int i = 0; i < 4; i++) {
    to[i] = float(v[i]);
  }
}

// Eight consecutive values; `from` is aligned to eight of them. Half types in one load of 16 bytes.
inline void load8(device const float* from, thread float* to) {
  load4(from, to);
  load4(from + 4, to + 4);
}

template <typename T>
inline void load8(device const T* from, thread float* to) {
  const uint4 raw = *(device const uint4*)from;
  const vec<T, 4> low = as_type<vec<T, 4>>(uint2(raw[0], raw[1]));
  const vec<T, 4> high = as_type<vec<T, 4>>(uint2(raw[2], raw[3]));
  UNROLL
  for (int i = 0; i < 4; i++) {
    to[i] = float(low[i]);
    to[4 + i] = float(high[i]);
  }
}

// bfloat16 is the upper half of a float.
inline void load8(device const bfloat* from, thread float* to) {
  const uint4 raw = *(device const uint4*)from;
  UNROLL
  for (int i = 0; i < 4; i++) {
    to[2 * i] = as_type<float>(raw[i] << 16);
    to[2 * i + 1] = as_type<float>(raw[i] & 0xffff0000u);
  }
}

// Values 8 i .. 8 i + 7. An index in units of a load costs a GPU nothing, an address of 64 bits two additions.
inline void load8_at(device const float* from, uint i, thread float* to) {
  UNROLL
  for (uint j = 0; j < 2; j++) {
    const float4 v = ((device const float4*)from + j)[2 * i];
    UNROLL
    for (uint e = 0; e < 4; e++) {
      to[4 * j + e] = v[e];
    }
  }
}

template <typename T>
inline void load8_at(device const T* from, uint i, thread float* to) {
  load8((device const T*)((device const uint4*)from + i), to);
}

// N consecutive values, in loads as wide as N allows; `from` is aligned to N of them.
template <int N, typename T>
inline void load_values(device const T* from, thread float* to) {
  if (N % 8 == 0) {
    UNROLL
    for (int i = 0; i + 7 < N; i += 8) {
      load8(from + i, to + i);
    }
  } else if (N % 4 == 0) {
    UNROLL
    for (int i = 0; i + 3 < N; i += 4) {
      load4(from + i, to + i);
    }
  } else {
    UNROLL
    for (int i = 0; i < N; i++) {
      to[i] = float(from[i]);
    }
  }
}

// Values N i .. N i + N - 1; `from` is aligned to N of them.
template <int N, typename T>
inline void load_at(device const T* from, uint i, thread float* to) {
  if (N % 8 == 0) {
    UNROLL
    for (uint j = 0; j < N / 8; j++) {
      load8_at(from + 8 * j, i * (N / 8), to + 8 * j);
    }
  } else {
    load_values<N>(from + i * N, to);
  }
}

// The same way back, of floats.
template <int N>
inline void store_at(device float* to, uint i, const thread float* from) {
  if (N % 4 == 0) {
    UNROLL
    for (uint j = 0; j < N / 4; j++) {
      ((device float4*)to + j)[i * (N / 4)] = float4(from[4 * j], from[4 * j + 1], from[4 * j + 2], from[4 * j + 3]);
    }
  } else {
    UNROLL
    for (uint j = 0; j < N; j++) {
      to[i * N + j] = from[j];
    }
  }
}

// Sums over lanes of `count` values at once, a power of two up to `lanes`: value i ends on the lanes / count lanes from i
// lanes / count on, and so in each group of so many lanes. Lanes 16 apart are added first, then those 8 apart, and so on:
// the order of a sum of one value, which takes a GPU five exchanges, or twenty and more slots in one instruction, where a
// value of 16 takes five in all.
template <int lanes = 32, int count>
inline float sum_over_lanes(thread float (&value)[count], uint lane) {
  UNROLL
  for (int step = 0; lanes >> step > 1; step++) {
    const int apart = lanes / 2 >> step;
    const int left = count >> step;  // values that a lane still has
    if (left > 1) {
      const bool upper = (lane & uint(apart)) != 0;
      UNROLL
      for (int i = 0; i < count / 2; i++) {
        if (i < left / 2) {
          const float first = value[i];
          const float second = value[i + left / 2];
          value[i] = (upper ? second : first) + simd_shuffle_xor(upper ? first : second, ushort(apart));
        }
      }
    } else {
      value[0] += simd_shuffle_xor(value[0], ushort(apart));
    }
  }
  return value[0];
}

// The same of one value, on all lanes.
inline float sum_over_lanes(float value) {
  UNROLL
  for (ushort apart = 16; apart > 0; apart /= 2) {
    value += simd_shuffle_xor(value, apart);
  }
  return value;
}

// Functions are called by their full name, precise:: or fast::. What a bare exp() is depends on the system: from macOS
// 15 on MLX leaves it at Metal's default, fast, whose log() near 1 costs a small softplus half of its digits, and whose
// cos() has none left at the angles of long contexts.
inline float sigmoid(float x) { return 1.0f / (1.0f + precise::exp(-x)); }

inline float silu(float x) { return x * sigmoid(x); }

// log(1 + e^x). Metal has no log1p: (log(u) / (u - 1)) e^x with u = 1 + e^x rounded makes up for that rounding.
inline float softplus(float x) {
  if (x > 20.0f) {
    return x;
  }
  const float e = precise::exp(x);
  const float u = 1.0f + e;
  return u == 1.0f ? e : precise::log(u) * (e / (u - 1.0f));
}

// Four taps of a causal convolution; the window has the three values before `newest`, oldest first.
inline float convolved(const thread float (&w)[4], const thread float (&window)[3], float newest) {
  return fma(w[3], newest, fma(w[2], window[2], fma(w[1], window[1], w[0] * window[0])));
}
