// Depthwise causal convolution of width 4 with SiLU, carrying its state: see csrc/ops/conv1d.cpp.
#include "common.h"
#include "params.h"

// A thread a channel and TOKENS tokens, whose window slides in registers. The tokens before its own it finds by walking
// back over masked ones, down to the state. Bytes: x 1 + 3 / TOKENS times (the second time from the cache), y once, the
// weights once per TOKENS; neighbouring threads are neighbouring channels, so every access fills whole cache lines.
// Threads: C ceil(T / TOKENS), 8192 a token decoded for the 9B. Loads in flight: 4 taps and 3 of the window, then x of
// one token a thread: 2 bytes each, so it takes the many threads to fill a bus. Registers: 4 taps, 3 of the window,
// about 20. The new state goes to memory of its own: threads of other tokens may still have to read the old one.
template <typename T, bool MASK, int TOKENS>
[[kernel]] void conv1d(
    device const T* x [[buffer(0)]], device const float* weight [[buffer(1)]], device const T* state [[buffer(2)]],
    device const bool* mask [[buffer(3)]], device T* y [[buffer(4)]], device T* new_state [[buffer(5)]],
    constant Conv1dParams& p [[buffer(6)]], uint3 position [[thread_position_in_grid]]) {
  const int c = int(position.x);
  const int b = int(position.z);
  if (c >= p.C) {
    return;
  }
  const int first = int(position.y) * TOKENS;
  const int last = min(first + TOKENS, p.T);
  const size_t C = size_t(p.C);
  device const T* xc = x + size_t(b) * size_t(p.T) * C + size_t(c);
  device T* yc = y + size_t(b) * size_t(p.T) * C + size_t(c);
  device const bool* there = mask + b * p.T;
  const size_t of_state = size_t(b) * 3 * C + size_t(c);

  float w[4];
  load4(weight + c * 4, w);
  float window[3];  // oldest first
  int t = first - 1;
  int old = 2;  // the state's row that comes before all tokens
  UNROLL
  for (int j = 2; j >= 0; j--) {
    while (MASK && t >= 0 && !there[t]) {
      t--;
    }
    if (t >= 0) {
      window[j] = float(xc[size_t(t) * C]);
      t--;
    } else {
      window[j] = float(state[of_state + size_t(old) * C]);
      old--;
    }
  }
  for (int i = first; i < last; i++) {
    if (MASK && !there[i]) {
      yc[size_t(i) * C] = T(0.0f);
      continue;
    }
    const float newest = float(xc[size_t(i) * C]);
    yc[size_t(i) * C] = T(silu(convolved(w, window, newest)));
    window[0] = window[1];
    window[1] = window[2];
    window[2] = newest;
  }
  if (last == p.T) {
    UNROLL
    for (int j = 0; j < 3; j++) {
      new_state[of_state + size_t(j) * C] = T(window[j]);
    }
  }
}
