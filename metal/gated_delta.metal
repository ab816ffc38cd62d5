// The gated delta rule over up to 16 tokens, one after the other: see csrc/ops/gated_delta.cpp.
#include "common.h"
#include "delta.h"
#include "params.h"

// A simdgroup keeps 4 rows of one head's state in registers over all tokens; rows need nothing of each other, so a
// head's are spread over as many threadgroups as it takes. Bytes: the state once in and once out, v and y once, q and k
// once per 4 rows (from the cache but for the first time). Threads: 8 Dv per head, 32768 for the 9B. Loads in flight:
// 16 state values a thread at the start in loads of 16 bytes, then q, k and v of a token. Registers: 16 state, 8 q and
// k, 8 sums, about 45. A step's 11 sums over lanes are independent: the length of the chain from token to token is that
// of one.
template <typename T, int DK, int DV, bool MASK>
[[kernel, max_total_threads_per_threadgroup(128)]] void gated_delta(
    device const T* q [[buffer(0)]], device const T* k [[buffer(1)]], device const T* v [[buffer(2)]],
    device const T* a [[buffer(3)]], device const T* b [[buffer(4)]], device const float* A_log [[buffer(5)]],
    device const float* dt_bias [[buffer(6)]], device const float* state [[buffer(7)]],
    device const bool* mask [[buffer(8)]], device T* y [[buffer(9)]], device float* new_state [[buffer(10)]],
    constant GatedDeltaParams& p [[buffer(11)]], uint3 threadgroup_ [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  const int R = 4;
  const int per_lane = DK / 32;
  const int row = (int(threadgroup_.x) * 4 + int(simdgroup)) * R;
  const int head = int(threadgroup_.y);
  const int sequence = int(threadgroup_.z);
  if (row >= DV) {
    return;
  }
  const int key_head = head / (p.Hv / p.Hk);
  const size_t of_state = (size_t(sequence) * size_t(p.Hv) + size_t(head)) * size_t(DV * DK) + size_t(row * DK);
  typedef DeltaRows<DK, R> Rows;
  const int own_row = row + int(Rows::row_of(lane));
  Rows rows;
  rows.load(state + of_state, lane);
  KEEP_LOOP
  for (int t = 0; t < p.T; t++) {
    const size_t token = size_t(sequence) * size_t(p.T) + size_t(t);
    const size_t value = token * size_t(p.Hv) + size_t(head);
    device T* out = y + value * size_t(DV);
    if (MASK && !mask[token]) {
      if (Rows::stores(lane)) {
        out[own_row] = T(0.0f);
      }
      continue;
    }
    const size_t key = (token * size_t(p.Hk) + size_t(key_head)) * size_t(DK);
    float qt[per_lane];
    float kt[per_lane];
    load_at<per_lane>(q + key, lane, qt);
    load_at<per_lane>(k + key, lane, kt);
    const float vt = float((v + value * size_t(DV))[own_row]);
    const Gates gates = delta_gates(float(a[value]), float(b[value]), A_log[head], dt_bias[head]);
    const float yt = rows.step(qt, kt, vt, gates, lane);
    if (Rows::stores(lane)) {
      out[own_row] = T(yt);
    }
  }
  rows.store(new_state + of_state, lane);
}
