// What several kernels share. All of them convert to float when they load and round once, when they store.
#pragma once

#include <metal_stdlib>

using namespace metal;

#define UNROLL _Pragma("clang loop unroll(full)")

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

// The same way back, of floats.
template <int N>
inline void store_values(device float* to, const thread float* from) {
  if (N % 4 == 0) {
    UNROLL
    for (int i = 0; i + 3 < N; i += 4) {
      *(device float4*)(to + i) = float4(from[i], from[i + 1], from[i + 2], from[i + 3]);
    }
  } else {
    UNROLL
    for (int i = 0; i < N; i++) {
      to[i] = from[i];
    }
  }
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

inline float silu(float x) { return x * sigmoid(x); }

// log(1 + e^x). Metal has no log1p: (log(u) / (u - 1)) e^x with u = 1 + e^x rounded makes up for that rounding.
inline float softplus(float x) {
  if (x > 20.0f) {
    return x;
  }
  const float e = exp(x);
  const float u = 1.0f + e;
  return u == 1.0f ? e : log(u) * (e / (u - 1.0f));
}
