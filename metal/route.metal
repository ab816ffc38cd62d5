// The experts of 1 to 16 tokens and their weights: see csrc/ops/route.cpp for the formula. Two launches: the logits, as
// qmm's products of one row of x, and the choice.
#include "common.h"
#include "dequant.h"
#include "params.h"
#include "qmm_multiply.h"

// Row `row` of the router (EACH = R rows from it on), or of the shared expert's gate, for one row of x.
template <typename F, int R, int K, int SIMDGROUPS, typename T>
inline float route_logits_of(const thread Chosen& chosen, const thread Work<T>& work, float eps) {
  float total[R];
  float squares[1];
  float none[1];
  multiply<F, None, R, 1, R, K, SIMDGROUPS, true>(total, squares, none, chosen, work, false);
  const float value = sum_over_lanes(total, work.lane);
  return value * precise::rsqrt(sum_over_lanes(squares, work.lane) / float(K) + eps);
}

// logits [M, E + 1]: the router's, then the shared expert's gate, by a threadgroup of its own.
//
// Bytes: the router once; x and norm come from the cache. More rows of x are threadgroups next to each other, so that
// all but the first find the router in the cache. Threads: 32 per R rows.
template <typename T, int R, int K, int SIMDGROUPS, typename F, typename G>
[[kernel, max_total_threads_per_threadgroup(32 * SIMDGROUPS)]] void route_logits(
    device const T* x [[buffer(0)]], device const float* norm [[buffer(1)]],
    device const uchar* w0 [[buffer(2)]], device const uchar* s0 [[buffer(3)]], device const uchar* b0 [[buffer(4)]],
    device const uchar* w1 [[buffer(5)]], device const uchar* s1 [[buffer(6)]], device const uchar* b1 [[buffer(7)]],
    device float* logits [[buffer(8)]], constant RouteParams& p [[buffer(9)]],
    uint2 threadgroup_ [[threadgroup_position_in_grid]], uint2 threadgroups [[threadgroups_per_grid]],
    uint simdgroup_ [[simdgroup_index_in_threadgroup]], uint lane_ [[thread_index_in_simdgroup]]) {
  typedef Tiling<K, 1, SIMDGROUPS> Tiles;
  const bool any_staged = AffineRows<F, 0, R>::present || AffineRows<G, 0, 1>::present;
  threadgroup float4 staged[any_staged ? int(Tiles::values) : 1];
  threadgroup float sums[any_staged ? int(Tiles::blocks) : 1];
  threadgroup float squares[any_staged ? int(Tiles::blocks) : 1];
  Work<T> work;
  work.x = x;
  work.norm = norm;
  work.staged = staged;
  work.sums = sums;
  work.squares = squares;
  work.first_row = threadgroup_.x;
  work.last_row = threadgroup_.x;
  work.thread_index = simdgroup_ * 32 + lane_;
  work.lane = lane_;
  device float* to = logits + threadgroup_.x * uint(p.E + 1);
  Chosen chosen;
  if (threadgroup_.y + 1 == threadgroups.y) {
    work.idle = simdgroup_ > 0;
    chosen.first = segment_of(w1, s1, b1);
    chosen.second = chosen.first;
    chosen.row = 0;
    const float value = route_logits_of<G, 1, K, SIMDGROUPS>(chosen, work, p.eps);
    if (!work.idle && lane_ == 0) {
      to[p.E] = value;
    }
    return;
  }
  const int first = int(threadgroup_.y * uint(SIMDGROUPS) + simdgroup_) * R;
  work.idle = first >= p.E;
  chosen.first = segment_of(w0, s0, b0);
  chosen.second = chosen.first;
  chosen.row = uint(min(first, p.E - R));
  const float value = route_logits_of<F, R, K, SIMDGROUPS>(chosen, work, p.eps);
  const int row = int(chosen.row) + int(lane_ / (32 / R));
  if (!work.idle && lane_ % (32 / R) == 0 && row >= first) {
    to[row] = value;
  }
}

// A NaN is below all numbers.
inline float key_of(float logit) { return (as_type<uint>(logit) & 0x7fffffffu) > 0x7f800000u ? -INFINITY : logit; }

// One simdgroup for each token: k times, the largest of the logits that come after the last one chosen in the order of
// their values, and among equals of their numbers.
//
// Bytes: E + 1 logits, which the launch before has left in the cache, k times.
[[kernel, max_total_threads_per_threadgroup(32)]] void route_choose(
    device const float* logits [[buffer(0)]], device uint* chosen [[buffer(1)]], device float* weights [[buffer(2)]],
    constant RouteParams& p [[buffer(3)]], uint token [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]) {
  device const float* from = logits + token * uint(p.E + 1);
  float last = INFINITY;
  uint last_expert = 0;
  float first_logit = 0.0f;
  float total = 0.0f;
  float mine = 0.0f;  // the weight that this lane writes
  for (int i = 0; i < p.k; i++) {
    float best = -INFINITY;
    uint expert = 0xffffffffu;
    for (uint e = lane; e < uint(p.E); e += 32) {
      const float key = key_of(from[e]);
      const bool left = i == 0 || key < last || (key == last && e > last_expert);
      if (left && (expert == 0xffffffffu || key > best)) {
        best = key;
        expert = e;
      }
    }
    for (ushort apart = 16; apart > 0; apart /= 2) {
      const float other = simd_shuffle_xor(best, apart);
      const uint of_other = simd_shuffle_xor(expert, apart);
      if (of_other != 0xffffffffu && (expert == 0xffffffffu || other > best || (other == best && of_other < expert))) {
        best = other;
        expert = of_other;
      }
    }
    last = best;
    last_expert = expert;
    const float logit = from[expert];
    first_logit = i == 0 ? logit : first_logit;
    const float weight = precise::exp(logit - first_logit);
    total += weight;
    if (int(lane) == i) {
      mine = weight;
      chosen[token * uint(p.k) + lane] = expert;
    }
  }
  if (int(lane) < p.k) {
    weights[token * uint(p.k + 1) + lane] = mine / total;
  } else if (int(lane) == p.k) {
    weights[token * uint(p.k + 1) + lane] = sigmoid(from[p.E]);
  }
}
