// Everything between the two projections of a gated-delta layer: see csrc/ops/delta_mixer.cpp.
#include "delta_mixer.h"

// A threadgroup a value head of a sequence of a batch. ONE: one token, none pending, and the states after it returned.
template <typename T, int DK, int DV, int R, bool MASK, bool ONE>
[[kernel, max_total_threads_per_threadgroup(32 * DV / R)]] void delta_mixer(
    device const T* projection [[buffer(0)]], device const float* conv_weight [[buffer(1)]],
    device const float* A_log [[buffer(2)]], device const float* dt_bias [[buffer(3)]],
    device const float* norm [[buffer(4)]], device const T* conv_state [[buffer(5)]],
    device const float* state [[buffer(6)]], device const bool* mask [[buffer(7)]],
    device const T* pending [[buffer(8)]], device T* y [[buffer(9)]], device T* new_conv_state [[buffer(10)]],
    device float* new_state [[buffer(11)]], constant DeltaMixerParams& p [[buffer(12)]],
    uint2 threadgroup_ [[threadgroup_position_in_grid]],
    uint thread_ [[thread_index_in_threadgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float4 qkv[MixerSizes<DK, DV, R>::channels / 4];  // four at a time, so that they are aligned
  threadgroup float squares[MixerSizes<DK, DV, R>::simdgroups];
  const int sequence = int(threadgroup_.y);
  const int tokens = ONE ? 1 : p.T;
  const int before = ONE ? 0 : p.P;
  const MixerStates<T> states = {conv_state, state, pending, new_conv_state, new_state};
  mix_head<T, DK, DV, R, MASK, ONE>(
      projection, conv_weight, A_log, dt_bias, norm, states, mask, y,
      sequence * tokens, sequence * before, uint(sequence * 3 * (2 * p.Hk * DK + p.Hv * DV)),
      uint(sequence * p.Hv) * uint(DV * DK), tokens, before, ONE ? 1 : p.kept, p.Hk, p.Hv, p.eps,
      int(threadgroup_.x), thread_, simdgroup, lane, (threadgroup float*)qkv, squares);
}
