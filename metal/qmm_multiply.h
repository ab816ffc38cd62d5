// The products of qmm's rows, whatever kernel they are in: qmm.metal, route.metal, experts.metal.
#pragma once

#include "qmm_rows.h"
#include "qmm_stage.h"

// The products of a simdgroup's R rows, in format F, or the second half in format G. f_squares, g_squares: sums of x^2,
// of either. x_is_staged: by an earlier call.
template <typename F, typename G, int EACH, int M, int R, int K, int SIMDGROUPS, bool NORM, typename T>
inline void multiply(
    thread float (&total)[M * R], thread float (&f_squares)[M], thread float (&g_squares)[M],
    const thread Chosen& chosen, const thread Work<T>& work, bool x_is_staged) {
  const int N = is_same_v<G, None> ? R : R / 2;
  UNROLL
  for (int m = 0; m < M; m++) {
    f_squares[m] = 0.0f;
    g_squares[m] = 0.0f;
    UNROLL
    for (int r = 0; r < R; r++) {
      total[m * R + r] = 0.0f;
    }
  }
  if (!work.idle) {
    PlainRows<F, 0, N>::template multiply<EACH, M, R, K, NORM>(total, f_squares, chosen, work);
    PlainRows<G, N, R - N>::template multiply<EACH, M, R, K, NORM>(total, g_squares, chosen, work);
  }
  typedef AffineRows<F, 0, N> OfF;
  typedef AffineRows<G, N, R - N> OfG;
  if (!OfF::present && !OfG::present) {
    return;
  }
  typedef Tiling<K, M, SIMDGROUPS> Tiles;
  typedef conditional_t<OfF::present, F, G> X;
  const uint blocks = K / 32;
  const uint turns = (blocks + 31) / 32;
  const uint turns_of_tile = (uint(Tiles::blocks) + 31) / 32;
  Sums sums;
  KEEP_LOOP
  for (uint turn = 0; turn < turns; turn++) {
    const uint tile = turn / turns_of_tile;
    const uint block = turn * 32 + work.lane;
    const uint of_tile = block - tile * uint(Tiles::blocks);
    const bool there = !work.idle && (blocks % 32 == 0 || block < blocks);
    // Asked for before x is staged, which is nearer. Lanes without a block take the last.
    typename OfF::Held f;
    typename OfG::Held g;
    OfF::template load<EACH, K>(f, chosen, blocks % 32 == 0 ? block : min(block, blocks - 1));
    OfG::template load<EACH, K>(g, chosen, blocks % 32 == 0 ? block : min(block, blocks - 1));
    float partial[M * R] = {};
    UNROLL
    for (int half = 0; half < int(Tiles::halves); half++) {
      if (!x_is_staged && turn % turns_of_tile == 0) {
        if (half > 0 || int(Tiles::count) > 1) {
          threadgroup_barrier(mem_flags::mem_threadgroup);
        }
        stage<X, M, K, NORM, SIMDGROUPS>(work, tile, half, sums);
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      if (there) {
        OfF::template multiply<X, Tiles, M, R>(partial, f, work, of_tile, half);
      }
      if (OfF::present && OfG::present) {  // or a compiler would keep all of x in registers from the one to the other
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }
      if (there) {
        OfG::template multiply<X, Tiles, M, R>(partial, g, work, of_tile, half);
      }
    }
    if (there) {
      float sum[M];
      UNROLL
      for (int m = 0; m < M; m++) {
        sum[m] = work.sums[uint(m) * uint(Tiles::blocks) + of_tile];
        if (NORM) {
          const float square = work.squares[uint(m) * uint(Tiles::blocks) + of_tile];
          f_squares[m] += OfF::present ? square : 0.0f;
          g_squares[m] += OfG::present ? square : 0.0f;
        }
      }
      OfF::template finish<M, R>(total, partial, f, sum);
      OfG::template finish<M, R>(total, partial, g, sum);
    }
  }
}
