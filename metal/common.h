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
