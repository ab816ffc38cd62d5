// delta_mixer of several sequences, each with states of its own: see csrc/ops/delta_mixer.cpp.
//
// A launch binds at most 31 buffers, and states are buffers of their own: 8 sequences of one token each, or 6 that may
// have several, and pending ones. A delta state is read and written in one buffer.
#include "delta_mixer.h"
#include "sequences.h"

// One token each, none pending, and the states after it returned.
template <typename T, int DK, int DV, int R>
[[kernel, max_total_threads_per_threadgroup(32 * DV / R)]] void delta_mixer_rows(
    device const T* projection [[buffer(0)]], device const float* conv_weight [[buffer(1)]],
    device const float* A_log [[buffer(2)]], device const float* dt_bias [[buffer(3)]],
    device const float* norm [[buffer(4)]], device T* y [[buffer(5)]],
    device const T* conv0 [[buffer(6)]], device const T* conv1 [[buffer(7)]], device const T* conv2 [[buffer(8)]],
    device const T* conv3 [[buffer(9)]], device const T* conv4 [[buffer(10)]], device const T* conv5 [[buffer(11)]],
    device const T* conv6 [[buffer(12)]], device const T* conv7 [[buffer(13)]],
    device T* new_conv0 [[buffer(14)]], device T* new_conv1 [[buffer(15)]], device T* new_conv2 [[buffer(16)]],
    device T* new_conv3 [[buffer(17)]], device T* new_conv4 [[buffer(18)]], device T* new_conv5 [[buffer(19)]],
    device T* new_conv6 [[buffer(20)]], device T* new_conv7 [[buffer(21)]],
    device float* state0 [[buffer(22)]], device float* state1 [[buffer(23)]], device float* state2 [[buffer(24)]],
    device float* state3 [[buffer(25)]], device float* state4 [[buffer(26)]], device float* state5 [[buffer(27)]],
    device float* state6 [[buffer(28)]], device float* state7 [[buffer(29)]],
    constant DeltaMixerRowsParams& p [[buffer(30)]], uint2 threadgroup_ [[threadgroup_position_in_grid]],
    uint thread_ [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float4 qkv[MixerSizes<DK, DV, R>::channels / 4];  // four at a time, so that they are aligned
  threadgroup float squares[MixerSizes<DK, DV, R>::simdgroups];
  const uint i = threadgroup_.y;
  device const T* const conv[MLX_DELTA_MIXER_ROWS] = {conv0, conv1, conv2, conv3, conv4, conv5, conv6, conv7};
  device T* const new_conv[MLX_DELTA_MIXER_ROWS] = {new_conv0, new_conv1, new_conv2, new_conv3,
                                                    new_conv4, new_conv5, new_conv6, new_conv7};
  device float* const delta[MLX_DELTA_MIXER_ROWS] = {state0, state1, state2, state3, state4, state5, state6, state7};
  device float* state = of_sequence(i, delta);
  const MixerStates<T> states = {of_sequence(i, conv), state, projection, of_sequence(i, new_conv), state};
  mix_head<T, DK, DV, R, false, true>(
      projection, conv_weight, A_log, dt_bias, norm, states, nullptr, y, p.first[i], 0, 0, 0, 1, 0, 1, p.Hk, p.Hv,
      p.eps, int(threadgroup_.x), thread_, simdgroup, lane, (threadgroup float*)qkv, squares);
}

// MixerStates of the sequence whose number is in threadgroup memory, chosen where they are asked for: a number read
// after a barrier is not known before it, or a compiler would choose all pointers at once and keep them in registers.
template <typename T>
struct SpanStates {
  device const T* conv_states[MLX_DELTA_MIXER_SPANS];
  device float* delta_states[MLX_DELTA_MIXER_SPANS];
  device const T* pending_tokens[MLX_DELTA_MIXER_SPANS];
  device T* new_conv_states[MLX_DELTA_MIXER_SPANS];
  const threadgroup uint* sequence;

  device const T* conv() const thread { return of_sequence(*sequence, conv_states); }
  device const float* delta() const thread { return of_sequence(*sequence, delta_states); }
  device const T* pending() const thread { return of_sequence(*sequence, pending_tokens); }
  device T* new_conv() const thread { return of_sequence(*sequence, new_conv_states); }
  device float* new_delta() const thread { return of_sequence(*sequence, delta_states); }
};

// Any number of tokens and pending tokens.
template <typename T, int DK, int DV, int R>
[[kernel, max_total_threads_per_threadgroup(32 * DV / R)]] void delta_mixer_spans(
    device const T* projection [[buffer(0)]], device const float* conv_weight [[buffer(1)]],
    device const float* A_log [[buffer(2)]], device const float* dt_bias [[buffer(3)]],
    device const float* norm [[buffer(4)]], device T* y [[buffer(5)]],
    device const T* conv0 [[buffer(6)]], device const T* conv1 [[buffer(7)]], device const T* conv2 [[buffer(8)]],
    device const T* conv3 [[buffer(9)]], device const T* conv4 [[buffer(10)]], device const T* conv5 [[buffer(11)]],
    device T* new_conv0 [[buffer(12)]], device T* new_conv1 [[buffer(13)]], device T* new_conv2 [[buffer(14)]],
    device T* new_conv3 [[buffer(15)]], device T* new_conv4 [[buffer(16)]], device T* new_conv5 [[buffer(17)]],
    device float* state0 [[buffer(18)]], device float* state1 [[buffer(19)]], device float* state2 [[buffer(20)]],
    device float* state3 [[buffer(21)]], device float* state4 [[buffer(22)]], device float* state5 [[buffer(23)]],
    device const T* pending0 [[buffer(24)]], device const T* pending1 [[buffer(25)]],
    device const T* pending2 [[buffer(26)]], device const T* pending3 [[buffer(27)]],
    device const T* pending4 [[buffer(28)]], device const T* pending5 [[buffer(29)]],
    constant DeltaMixerSpansParams& p [[buffer(30)]], uint2 threadgroup_ [[threadgroup_position_in_grid]],
    uint thread_ [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float4 qkv[MixerSizes<DK, DV, R>::channels / 4];  // four at a time, so that they are aligned
  threadgroup float squares[MixerSizes<DK, DV, R>::simdgroups];
  threadgroup uint sequence;
  const uint i = threadgroup_.y;
  if (thread_ == 0) {
    sequence = i;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const SpanStates<T> states = {{conv0, conv1, conv2, conv3, conv4, conv5},
                                {state0, state1, state2, state3, state4, state5},
                                {pending0, pending1, pending2, pending3, pending4, pending5},
                                {new_conv0, new_conv1, new_conv2, new_conv3, new_conv4, new_conv5},
                                &sequence};
  mix_head<T, DK, DV, R, false, false>(
      projection, conv_weight, A_log, dt_bias, norm, states, nullptr, y, p.first[i], 0, 0, 0, p.T[i], p.P[i], p.kept[i],
      p.Hk, p.Hv, p.eps, int(threadgroup_.x), thread_, simdgroup, lane, (threadgroup float*)qkv, squares);
}
