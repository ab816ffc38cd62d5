// Rows of keys and values in a cache, D of T one behind the other, or in 8 bits (csrc/kv_layout.h): D int8, and a
// bfloat16 scale for each 64 of them. A simdgroup takes a row; in units of what a lane has of it, D / 32 elements,
// those of 8 bits are 33 long: the scales fill one.
#pragma once

#include "common.h"

template <typename T>
inline int row_units(device const T*) {
  return 32;
}

inline int row_units(device const char*) { return 33; }

// The N values of a lane, N lane .. N lane + N - 1 of a row, and what they are to be multiplied by.
template <int N, typename T>
inline float load_row(device const T* rows, uint row, uint lane, thread float* to) {
  load_at<N>(rows, row * 32 + lane, to);
  return 1.0f;
}

template <int N>
inline float load_row(device const char* rows, uint row, uint lane, thread float* to) {
  const uint at = row * 33 + lane;
  if (N % 4 == 0) {
    UNROLL
    for (uint j = 0; j < N / 4; j++) {
      const char4 four = as_type<char4>(((device const uint*)rows + j)[at * (N / 4)]);
      UNROLL
      for (uint e = 0; e < 4; e++) {
        to[4 * j + e] = float(four[e]);
      }
    }
  } else {
    UNROLL
    for (uint j = 0; j < N / 2; j++) {
      const char2 two = as_type<char2>(((device const ushort*)rows + j)[at * (N / 2)]);
      to[2 * j] = float(two[0]);
      to[2 * j + 1] = float(two[1]);
    }
  }
  // Each scale is read once, by a lane, and not by all that need it.
  const uint first = (row * 33 + 32) * (N / 2);
  const uint own = lane < N / 2 ? uint(((device const ushort*)rows)[first + lane]) : 0u;
  return as_type<float>(simd_shuffle(own, ushort(lane * N / 64)) << 16);
}

// The N values of a lane, lane + 32 i of a row.
template <int N, typename T>
inline void store_row(device T* row, int lane, const thread T* from) {
  UNROLL
  for (int i = 0; i < N; i++) {
    row[lane + 32 * i] = from[i];
  }
}

// Rounded to nearest even. Where a value is not finite the scale is NaN; where all are next to nothing they count as 0.
template <int N, typename T>
inline void store_row(device char* row, int lane, const thread T* from) {
  UNROLL
  for (int group = 0; group < N / 2; group++) {
    const float low = float(from[2 * group]);
    const float high = float(from[2 * group + 1]);
    const bool bad = simd_any(!(isfinite(low) && isfinite(high)));
    const float largest = simd_max(max(abs(low), abs(high)));
    const ushort stored = bad ? ushort(0x7fc0) : as_type<ushort>(bfloat(largest / 127.0f));
    const float scale = as_type<float>(uint(stored) << 16);
    const bool some = scale >= 0x1p-100f;
    const float inverse = 1.0f / (some ? scale : 1.0f);
    row[lane + 64 * group] = some ? char(rint(low * inverse)) : char(0);
    row[lane + 64 * group + 32] = some ? char(rint(high * inverse)) : char(0);
    if (lane == 0) {
      ((device ushort*)(row + 32 * N))[group] = stored;
    }
  }
}
