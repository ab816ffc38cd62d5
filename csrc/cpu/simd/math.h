// Small float kernels that several ops share. See vector.h for how they are compiled.
#pragma once

#include <math.h>  // the C functions: <cmath>'s inline overloads must not be shared between instruction sets

#include "cpu/simd/vector.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

template <typename T>
inline const T* row(const Rows& rows, int64_t i) {
  return static_cast<const T*>(rows.data) + i * rows.stride;
}

template <typename T>
inline void load_floats(const T* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(load(from + i), to + i);
  for (; i < n; ++i) to[i] = to_float(from[i]);
}

template <typename T>
inline void store_floats(const float* from, int64_t n, T* to) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(load(from + i), to + i);
  for (; i < n; ++i) to[i] = from_float<T>(from[i]);
}

template <typename T>
inline void fill(T* p, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

// sum_i a[i] b[i]. Four accumulators hide the latency of the multiply-add; the order depends on n alone.
template <typename A>
inline float dot(const A* a, const float* b, int64_t n) {
  F s0{}, s1{}, s2{}, s3{};
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    s0 += load(a + i) * load(b + i);
    s1 += load(a + i + W) * load(b + i + W);
    s2 += load(a + i + 2 * W) * load(b + i + 2 * W);
    s3 += load(a + i + 3 * W) * load(b + i + 3 * W);
  }
  for (; i + W <= n; i += W) s0 += load(a + i) * load(b + i);
  float tail = 0;
  for (; i < n; ++i) tail += to_float(a[i]) * b[i];
  return sum((s0 + s1) + (s2 + s3)) + tail;
}

// y += alpha x
template <typename X>
inline void axpy(float alpha, const X* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(load(y + i) + alpha * load(x + i), y + i);
  for (; i < n; ++i) y[i] += alpha * to_float(x[i]);
}

inline void scale(float alpha, int64_t n, float* x) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(alpha * load(x + i), x + i);
  for (; i < n; ++i) x[i] *= alpha;
}

// 1 / sqrt(mean(x^2) + eps)
inline float inverse_rms(const float* x, int64_t n, float eps) { return 1.0f / sqrtf(dot(x, x, n) / float(n) + eps); }

// e^x within 2 units in the last place; below -87 about 1e-38 instead of 0, above 88 about 1e38 instead of infinity.
inline F exp(F x) {
  x = select(I(x < -87.0f), splat(-87.0f), select(I(x > 88.0f), splat(88.0f), x));
  // x = n log 2 + r, |r| <= log(2) / 2: the nearest integer falls out of adding 1.5 * 2^23.
  const F shifted = x * 1.44269504f + 12582912.0f;
  const F n = shifted - 12582912.0f;
  const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // log 2 in two parts, so that n log 2 is exact
  F p = r * (1.0f / 5040) + 1.0f / 720;                     // Taylor: the next term is below 2^-26 here
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return F(I(p) + (__builtin_convertvector(n, I) << 23));
}

inline F sigmoid(F x) { return 1.0f / (1.0f + exp(-x)); }
inline F silu(F x) { return x * sigmoid(x); }
inline float sigmoid(float x) { return sigmoid(splat(x))[0]; }
inline float silu(float x) { return x * sigmoid(x); }

// log(1 + e^x), without overflow
inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
