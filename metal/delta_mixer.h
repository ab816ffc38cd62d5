// What a threadgroup of delta_mixer does, of a batch's sequence or of one that has states of its own: see
// csrc/ops/delta_mixer.cpp for the formula.
#pragma once

#include "common.h"
#include "delta.h"
#include "params.h"

template <int DK, int DV, int R>
struct MixerSizes {
  enum { simdgroups = DV / R, threads = 32 * simdgroups, channels = 2 * DK + DV };  // channels: q, k and v of a head
};

// Where the states of a sequence are, and its pending tokens. delta_state and new_delta_state may be one buffer,
// conv_state and new_conv_state not.
template <typename T>
struct MixerStates {
  device const T* conv_state;
  device const float* delta_state;
  device const T* pending_tokens;
  device T* new_conv_state;
  device float* new_delta_state;

  device const T* conv() const thread { return conv_state; }
  device const float* delta() const thread { return delta_state; }
  device const T* pending() const thread { return pending_tokens; }
  device T* new_conv() const thread { return new_conv_state; }
  device float* new_delta() const thread { return new_delta_state; }
};

// A threadgroup a value head, R rows of its state a simdgroup, in registers over all T tokens. Per token: every thread
// convolves a channel or less into threadgroup memory; the simdgroups take their rows through the recurrence; the sums
// of squares meet in threadgroup memory; each simdgroup normalises and stores its R values of y.
//
// Bytes: the state once in and once out (4 MB of the 9B's 4.1 MB a layer), which is as good as all there is; the conv
// channels of a key head are read by each of its value heads, from the cache. The new conv state has memory of its own,
// written by the first value head of a key head. Threads: 4 Dv per head, 16384 for the 9B; loads in flight: a head's
// whole state, 64 KB, at once, 16 bytes a load. Registers: 4 R state (Dk = 128), 8 q and k, 2 R sums, about 75; R = 8
// makes a head 512 threads, which an Apple core's 208 KB of registers hold at up to 104 each (1024 only at 52). Indices
// of 32 bits are what it takes not to spill any.
// Two barriers a token.
//
// States: MixerStates, or what has the same functions. A sequence's `tokens` are those from `first` on, after `before`
// pending ones, from first_pending on; its conv and delta state begin of_conv and of_states after the pointers. The
// states returned have seen `kept` of all tokens. qkv and squares: threadgroup memory for `channels` values, aligned to
// four, and `simdgroups`.
template <typename T, int DK, int DV, int R, bool MASK, bool ONE, typename States>
inline void mix_head(
    device const T* projection, device const float* conv_weight, device const float* A_log,
    device const float* dt_bias, device const float* norm, const thread States& states, device const bool* mask,
    device T* y, int first, int first_pending, uint of_conv, uint of_states, int tokens, int before, int kept, int Hk,
    int Hv, float eps, int head, uint thread_, uint simdgroup, uint lane, threadgroup float* qkv,
    threadgroup float* squares) {
  typedef MixerSizes<DK, DV, R> Sizes;
  const int simdgroups = int(Sizes::simdgroups);
  const int threads = int(Sizes::threads);
  const int channels = int(Sizes::channels);
  const int per_thread = (channels + threads - 1) / threads;
  const int per_lane = DK / 32;

  const int row = int(simdgroup) * R;
  const int heads_per_key = Hv / Hk;
  const int key_head = head / heads_per_key;
  const int key_dim = Hk * DK;
  const int value_dim = Hv * DV;
  const int C = 2 * key_dim + value_dim;
  const int width = C + value_dim + 2 * Hv;

  int channel[per_thread];  // in the projection
  float w[per_thread][4];
  float window[per_thread][3];  // oldest first
  UNROLL
  for (int i = 0; i < per_thread; i++) {
    const int c = int(thread_) + i * threads;
    if (c < channels) {
      channel[i] = c < DK       ? key_head * DK + c
                   : c < 2 * DK ? key_dim + key_head * DK + c - DK
                                : 2 * key_dim + head * DV + c - 2 * DK;
      load4(conv_weight + channel[i] * 4, w[i]);
      UNROLL
      for (int j = 0; j < 3; j++) {
        window[i][j] = float(states.conv()[of_conv + uint(j * C + channel[i])]);
      }
    }
  }
  const uint of_state = of_states + uint(head * DV * DK + row * DK);
  typedef DeltaRows<DK, R> Rows;
  const int own_row = row + int(Rows::row_of(lane));
  Rows rows;
  rows.load(states.delta() + of_state, lane);

  // Pending tokens first: they count for the states alone. Those after the last of `kept` leave the states in memory
  // as they are. The loop has its end in its middle alone: a compiler that does not know whether it runs at all keeps
  // what it needs of the arguments in registers.
  KEEP_LOOP
  for (int t = -before;; t++) {
    if (t + before == kept) {
      rows.store(states.new_delta() + of_state, lane);
      UNROLL
      for (int i = 0; i < per_thread; i++) {
        const int c = int(thread_) + i * threads;
        if (c < channels && (c >= 2 * DK || head % heads_per_key == 0)) {
          UNROLL
          for (int j = 0; j < 3; j++) {
            states.new_conv()[of_conv + uint(j * C + channel[i])] = T(window[i][j]);
          }
        }
      }
    }
    if (t == tokens) {
      break;
    }
    const bool counts = ONE || t >= 0;  // for y
    const uint token = uint(counts ? first + t : first_pending + t + before);
    device const T* in = counts ? projection : states.pending();
    const uint of_token = token * uint(width);
    device T* out = y + (token * uint(value_dim) + uint(head * DV));
    if (MASK && counts && !mask[token]) {
      if (Rows::stores(lane)) {
        out[own_row] = T(0.0f);
      }
      continue;
    }
    UNROLL
    for (int i = 0; i < per_thread; i++) {
      const int c = int(thread_) + i * threads;
      if (c < channels) {
        const float newest = float(in[of_token + uint(channel[i])]);
        qkv[c] = silu(convolved(w[i], window[i], newest));
        window[i][0] = window[i][1];
        window[i][1] = window[i][2];
        window[i][2] = newest;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    float q[per_lane];
    float k[per_lane];
    UNROLL
    for (int i = 0; i < per_lane; i++) {
      q[i] = qkv[int(lane) * per_lane + i];
      k[i] = qkv[DK + int(lane) * per_lane + i];
    }
    const float b = float(in[of_token + uint(C + value_dim + head)]);
    const float a = float(in[of_token + uint(C + value_dim + Hv + head)]);
    const float v = qkv[2 * DK + own_row];
    const float yt = rows.step(q, k, v, delta_gates(a, b, A_log[head], dt_bias[head]), lane);
    float sum = 0.0f;
    UNROLL
    for (int r = 0; r < R; r++) {
      const float of_row = simd_broadcast(yt, ushort(r * int(Rows::lanes_of_row)));
      sum = fma(of_row, of_row, sum);
    }
    if (lane == 0) {
      squares[simdgroup] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const float square = sum_over_lanes(lane < uint(simdgroups) ? squares[lane] : 0.0f);
    if (counts && Rows::stores(lane)) {
      const float z = float(in[of_token + uint(C + head * DV + own_row)]);
      out[own_row] = T(norm[own_row] * (yt * precise::rsqrt(square / float(DV) + eps)) * silu(z));
    }
  }
}
