// delta_mixer of several sequences, each with states of its own: see csrc/ops/delta_mixer.cpp.
//
// A launch binds at most 31 buffers, and states are buffers of their own: 8 sequences of one token each, or 6 that may
// have several, and pending ones. A delta state is read and written in one buffer.
#include "delta_mixer.h"

// The buffer of sequence i.
template <typename P>
inline P of_sequence(int i, P b0, P b1, P b2, P b3, P b4, P b5) {
  return i < 3 ? (i == 0 ? b0 : i == 1 ? b1 : b2) : (i == 3 ? b3 : i == 4 ? b4 : b5);
}

template <typename P>
inline P of_sequence(int i, P b0, P b1, P b2, P b3, P b4, P b5, P b6, P b7) {
  return i < 6 ? of_sequence(i, b0, b1, b2, b3, b4, b5) : i == 6 ? b6 : b7;
}

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
  const int i = int(threadgroup_.y);
  device float* state = of_sequence(i, state0, state1, state2, state3, state4, state5, state6, state7);
  mix_head<T, DK, DV, R, false, true>(
      projection, conv_weight, A_log, dt_bias, norm,
      of_sequence(i, conv0, conv1, conv2, conv3, conv4, conv5, conv6, conv7), state, nullptr, projection,
      y, of_sequence(i, new_conv0, new_conv1, new_conv2, new_conv3, new_conv4, new_conv5, new_conv6, new_conv7), state,
      p.first[i], 0, 0, 0, 1, 0, 1, p.Hk, p.Hv, p.eps, int(threadgroup_.x), thread_, simdgroup, lane,
      (threadgroup float*)qkv, squares);
}

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
  const int i = int(threadgroup_.y);
  device float* state = of_sequence(i, state0, state1, state2, state3, state4, state5);
  mix_head<T, DK, DV, R, false, false>(
      projection, conv_weight, A_log, dt_bias, norm,
      of_sequence(i, conv0, conv1, conv2, conv3, conv4, conv5), state, nullptr,
      of_sequence(i, pending0, pending1, pending2, pending3, pending4, pending5), y,
      of_sequence(i, new_conv0, new_conv1, new_conv2, new_conv3, new_conv4, new_conv5), state, p.first[i], 0, 0, 0,
      p.T[i], p.P[i], p.kept[i], p.Hk, p.Hv, p.eps, int(threadgroup_.x), thread_, simdgroup, lane,
      (threadgroup float*)qkv, squares);
}
