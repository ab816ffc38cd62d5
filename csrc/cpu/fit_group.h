// The least-squares fit of one group of weights, and the packing of its integers: the steps of fit_affine.
#pragma once

#include "cpu/simd/vector.h"

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int kMostWeights = 128;  // of a group
inline constexpr int kRanges = 4;         // narrower ends tried on either side
inline constexpr int kRounds = 3;         // of alternation
// bits -> the narrowest range tried, as a part of the group's.
inline constexpr float kNarrowest[9] = {1, 1, 0.45f, 0.6f, 0.75f, 0.85f, 0.92f, 0.94f, 0.96f};

// To the nearest integer, ties to even, for 0 <= x < 2^22: the sum has no room for a fraction.
inline F round_even(F x) { return (x + 12582912.f) - 12582912.f; }
inline F vmin(F a, F b) { return select(I(a < b), a, b); }

// One group of n weights, as columns of vectors: w, and x = w centred on its weighted mean; h their importance.
struct Group {
  alignas(64) float w[kMostWeights], x[kMostWeights], q[kMostWeights];
  const float* h;
  int n;
  float top, total, gain;

  // q = round((v - bias) / scale) within [0, top], W of them.
  F quantize(F v, float inverse, float offset) const {
    return round_even(vmin(vmax(v * inverse - offset, F{}), splat(top)));
  }
};

struct Line {
  float explained = -1, scale = 0, bias = 0;  // explained: what the fit lowers the weighted square of x by
};

inline float inverse_of(float scale) { return 1 / (scale > 0 ? scale : 1.f); }

// The weighted regression of x on q(scale, bias), kept if it is better than `best`.
inline void regress(const Group& g, float scale, float bias, Line& best) {
  const float inverse = inverse_of(scale), offset = bias * inverse;
  F q1{}, q2{}, xq{};
  for (int i = 0; i < g.n; i += W) {
    const F x = load(g.x + i), q = g.quantize(x, inverse, offset), hq = load(g.h + i) * q;
    q1 += hq;
    q2 += hq * q;
    xq += hq * x;
  }
  const float sum_q = sum(q1), sum_qq = sum(q2), sum_xq = sum(xq);
  const float spread = g.total * sum_qq - sum_q * sum_q;
  if (!(spread > 1e-6f * g.total * sum_qq)) return;  // all q are the same: b alone fits as well
  const float slope = g.total * sum_xq / spread;
  if (slope * sum_xq > best.explained) best = {slope * sum_xq, slope, -slope * sum_q / g.total};
}

// The weighted mean of w - scale * q, or, with its square, the weighted error.
inline float residual(const Group& g, float scale, float bias, bool squared) {
  const float inverse = inverse_of(scale), offset = bias * inverse;
  F total{};
  for (int i = 0; i < g.n; i += W) {
    const F w = load(g.w + i), rest = w - g.quantize(w, inverse, offset) * scale;
    total += load(g.h + i) * (squared ? (rest - bias) * (rest - bias) : rest);
  }
  return sum(total);
}

inline float rounded(float x) { return to_float(from_float<bf16>(x)); }

// Fits g.w, stretched by what is left in g.gain, and fills g.q; the scale and bias as bfloat16 values.
inline Line fit(Group& g, int bits) {
  F wh{}, low = splat(g.w[0]), high = low;
  for (int i = 0; i < g.n; i += W) wh += load(g.w + i) * load(g.h + i);
  const float centre = sum(wh) / g.total;
  low = high = splat(g.w[0] - centre);
  F square{};
  for (int i = 0; i < g.n; i += W) {
    const F x = load(g.w + i) - centre;
    store(x, g.x + i);
    low = vmin(low, x);
    high = vmax(high, x);
    square += load(g.h + i) * x * x;
  }
  const float least_x = -max_lane(-low), most_x = max_lane(high), spread = sum(square);
  Line best;
  for (int below = 0; below < kRanges; ++below)
    for (int above = 0; above < kRanges; ++above) {
      const float step = (1 - kNarrowest[bits]) / (kRanges - 1);
      const float from = (kNarrowest[bits] + step * float(below)) * least_x;
      const float to = (kNarrowest[bits] + step * float(above)) * most_x;
      regress(g, (to - from) / g.top, from, best);
    }
  for (int round = 0; round < kRounds; ++round) regress(g, best.scale, best.bias, best);

  // The shrinkage of least squares, undone by fitting weights stretched by as much.
  const float offset = g.total * centre * centre, whole = spread + offset;
  const float kept = least(offset + most(best.explained, 0.f), whole);
  g.gain = kept > whole / 2 ? whole / kept : 1;
  for (int i = 0; i < g.n; i += W) store(load(g.w + i) * g.gain, g.w + i);
  const float scale = best.scale * g.gain, bias = (best.bias + centre) * g.gain;

  Line found;
  float error = __builtin_inff();
  const uint16_t nearest = from_float<bf16>(scale > 0 ? scale : 1.f).bits;
  for (int step = -1; step <= 1; ++step) {
    const float s = to_float(bf16{uint16_t(nearest + step)});
    const float b = rounded(residual(g, s, bias, false) / g.total);
    const float e = residual(g, s, b, true);
    if (e < error) error = e, found = {0, s, b};
  }
  const float inverse = inverse_of(found.scale);
  for (int i = 0; i < g.n; i += W) store(g.quantize(load(g.w + i), inverse, found.bias * inverse), g.q + i);
  return found;
}

// Eight values of `bits` bits fill `bits` bytes, the first in the lowest bits.
inline void pack(const float* q, int n, int bits, unsigned char* out) {
  for (int i = 0; i < n; i += 8, out += bits) {
    uint64_t eight = 0;
    for (int j = 0; j < 8; ++j) eight |= uint64_t(q[i + j]) << (bits * j);
    for (int byte = 0; byte < bits; ++byte) out[byte] = static_cast<unsigned char>(eight >> (8 * byte));
  }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA
