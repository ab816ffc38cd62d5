// A prompt's rows (strips_avx512.h) on packed weights.
//
// A register tile is 4 rows of x by 3 strips: 12 products for 3 loads of weights and 4 broadcasts of x, and once a
// group 12 times a conversion and three multiply-adds: 384 cycles of products to 36 of arithmetic on Zen 4, where
// sums that lie across a vector (avx512.h) pay 3 multiplications for 16 products.
//
// The integers are those of avx512.h, with the same fixed point of x, and so exact sums over a group; only the
// order in which groups are added differs.
#pragma once

#include "cpu/qmm/avx512.h"
#include "cpu/qmm/strips_avx512.h"

#if defined(__AVX512VNNI__)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// Where in a tile's vector the 32-bit lanes of a group are: offset[i] beyond the group's first; and where its step and
// sum are among those of a tile of several rows of x.
template <int vectors, int group_size>
struct GroupLanes {
  static constexpr int groups = 64 * vectors / group_size;
  static constexpr int lanes = 16 / groups;
  int first[groups] = {}, offset[lanes] = {}, factors[groups] = {};

  constexpr GroupLanes() {
    int found[groups] = {};
    for (int lane = 0; lane < 16; ++lane) {
      const int group = group_of<vectors, group_size>(lane / 2);
      if (found[group] == 0) first[group] = lane;
      if (group == 0) offset[found[group]] = lane;
      ++found[group];
    }
    for (int lane = 15; lane >= 0; --lane) factors[SharedLanes<vectors, group_size>{}.group[lane]] = lane;
  }
};

inline constexpr int64_t kTiledColumns = 512;  // of a block: 24 KB of weights

// A block of columns of one unit, unpacked.
struct TiledBlock {
  uint8_t* weights;  // [strips][tiles][groups][vectors][lanes of a group][16 rows][4]
  float* scales;     // [groups of the block][strips][16 rows]
  float* biases;
};

// Strip `strip` of a block: `count` <= 16 rows (the last one stands in for missing ones), tiles from .. to.
template <int bits, int group_size>
void unpack_strip(const PackedRows& rows, int64_t count, int64_t from, int64_t to,
                  const Unpack<bits, group_size>& unpack, int strip, const TiledBlock& block) {
  using T = Tile<bits, group_size>;
  using Lanes = GroupLanes<T::vectors, group_size>;
  constexpr Lanes lanes;
  uint8_t* strip_at = block.weights + strip * (kTiledColumns * 16);
  for (int64_t t = from; t < to; ++t) {
    const int64_t left = rows.cols - t * T::weights;
    __m512i w[T::vectors][16];
    for (int r = 0; r < 16; ++r) {
      const uint8_t* p = rows.data + least<int64_t>(r, count - 1) * rows.row_bytes + t * T::bytes;
      __m512i loaded[T::loads], unpacked[T::vectors];
      if (left >= T::weights)
        load_tile<T>(p, loaded);
      else
        load_part_tile<T>(p, left * bits / 8, loaded);
      unpack(loaded, unpacked);
      for (int v = 0; v < T::vectors; ++v) w[v][r] = unpacked[v];
      for (int i = 0; i < T::bytes; i += 64) prefetch(p + (to - from) * T::bytes + i);
    }
    for (int v = 0; v < T::vectors; ++v) {
      __m512i columns[16];
      transpose_lanes(w[v], columns);
      for (int g = 0; g < Lanes::groups; ++g)
        for (int i = 0; i < Lanes::lanes; ++i)
          _mm512_store_si512(strip_at + (t - from) * (T::weights * 16) + ((g * T::vectors + v) * Lanes::lanes + i) * 64,
                             columns[lanes.first[g] + lanes.offset[i]]);
    }
  }
  const int64_t first_group = from * T::weights / group_size;
  const int64_t groups = least(to * T::weights / group_size, rows.groups) - first_group;
  for (int64_t g = 0; g < groups; ++g)
    for (int r = 0; r < 16; ++r) {
      const int64_t at = least<int64_t>(r, count - 1) * rows.groups + first_group + g;
      block.scales[(g * kStrips + strip) * 16 + r] = to_float(bf16{rows.scales[at]});
      block.biases[(g * kStrips + strip) * 16 + r] = to_float(bf16{rows.biases[at]});
    }
}

// acc[m][strip] (vectors of 16 weight rows) += tiles from .. to of a block times MR rows of x from m0 on.
template <int vectors, int group_size, int MR, int NV>
void multiply_tile(const TiledBlock& block, int64_t cols, int64_t from, int64_t to, const FixedX& x, int64_t m0,
                   float* acc_at) {
  using Lanes = GroupLanes<vectors, group_size>;
  static constexpr Lanes lanes;
  constexpr int64_t strip_bytes = kTiledColumns * 16;
  __m512 acc[MR][NV];
  MLX_DELTA_UNROLL
  for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
  for (int n = 0; n < NV; ++n) acc[m][n] = _mm512_load_ps(acc_at + m * kTiledRows + n * 16);
  const uint8_t* w = block.weights;
  const float *scales = block.scales, *biases = block.biases;
  const auto& of_x = x.M == 1 ? lanes.first : lanes.factors;
  const int64_t all_groups = cols / group_size;
  for (int64_t t = from; t < to; ++t) {
    const auto* x_tile = x.tile<vectors>(m0, t);
    for (int g = 0; g < Lanes::groups; ++g, scales += kTiledRows, biases += kTiledRows) {
      const int64_t group = t * Lanes::groups + g;
      if (group >= all_groups) break;
      __m512i dot[MR][NV];
      MLX_DELTA_UNROLL
      for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
      for (int n = 0; n < NV; ++n) dot[m][n] = _mm512_setzero_si512();
      const auto products = [&](auto plane) __attribute__((always_inline)) {
        const uint8_t* wv = w;
        MLX_DELTA_UNROLL
        for (int v = 0; v < vectors; ++v) MLX_DELTA_UNROLL
        for (int i = 0; i < Lanes::lanes; ++i, wv += 64) {
          asm volatile("" ::: "memory");  // or GCC loads the weights of a whole group first, and spills them
          __m512i wk[NV];
          MLX_DELTA_UNROLL
          for (int n = 0; n < NV; ++n) wk[n] = held(_mm512_load_si512(wv + n * strip_bytes));
          MLX_DELTA_UNROLL
          for (int m = 0; m < MR; ++m) {
            int32_t four;
            std::memcpy(&four, x_tile[m].*plane + 4 * lanes.first[g] + v * 64 + lanes.offset[i] * 4, 4);
            const __m512i xk = held(_mm512_set1_epi32(four));
            MLX_DELTA_UNROLL
            for (int n = 0; n < NV; ++n) dot[m][n] = _mm512_dpbusd_epi32(dot[m][n], wk[n], xk);
          }
        }
      };
      products(&XTile<vectors>::hi);
      MLX_DELTA_UNROLL
      for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
      for (int n = 0; n < NV; ++n) dot[m][n] = _mm512_slli_epi32(dot[m][n], 8);
      products(&XTile<vectors>::lo);
      w += vectors * Lanes::lanes * 64;
      MLX_DELTA_UNROLL
      for (int m = 0; m < MR; ++m) {
        const __m512 step = _mm512_set1_ps(x_tile[m].steps[of_x[g]]);
        const __m512 sum = _mm512_set1_ps(x_tile[m].sums[of_x[g]]);
        MLX_DELTA_UNROLL
        for (int n = 0; n < NV; ++n) {
          const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot[m][n]), step);
          acc[m][n] = _mm512_fmadd_ps(_mm512_load_ps(scales + n * 16), scaled, acc[m][n]);
          acc[m][n] = _mm512_fmadd_ps(_mm512_load_ps(biases + n * 16), sum, acc[m][n]);
        }
      }
    }
  }
  MLX_DELTA_UNROLL
  for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
  for (int n = 0; n < NV; ++n) _mm512_store_ps(acc_at + m * kTiledRows + n * 16, acc[m][n]);
}

template <int bits, int group_size, int NV>
void multiply_unit(const PackedRows& rows, int64_t count, const FixedX& x, float* acc) {
  using T = Tile<bits, group_size>;
  constexpr int64_t tiles = kTiledColumns / T::weights, groups = kTiledColumns / group_size;
  uint8_t* space = scratch_of<uint8_t>(3, kTiledColumns * kTiledRows + 2 * groups * kTiledRows * 4);
  TiledBlock block{space, reinterpret_cast<float*>(space + kTiledColumns * kTiledRows), nullptr};
  block.biases = block.scales + groups * kTiledRows;
  const Unpack<bits, group_size> unpack;
  for (int64_t from = 0; from < x.tiles; from += tiles) {
    const int64_t to = least(from + tiles, x.tiles);
    for (int strip = 0; strip < NV; ++strip) {
      PackedRows some = rows;
      some.data += 16 * strip * rows.row_bytes;
      some.scales += 16 * strip * rows.groups;
      some.biases += 16 * strip * rows.groups;
      unpack_strip<bits, group_size>(some, least<int64_t>(16, count - 16 * strip), from, to, unpack, strip, block);
    }
    for_tiles_of_x(x.M, [&](int64_t m, auto rows_of_x) {
      multiply_tile<T::vectors, group_size, decltype(rows_of_x)::value, NV>(block, rows.cols, from, to, x, m,
                                                                            acc + m * kTiledRows);
    });
  }
}

void multiply_tiled(const MatrixView& matrix, int64_t n, int64_t count, const FixedX& x, float* acc) {
  const PackedRows rows = packed_rows(matrix, n);
  for_width(matrix, [&](auto bits, auto group_size) {
    constexpr int width = decltype(bits)::value, group = decltype(group_size)::value;
    if (count > 32) return multiply_unit<width, group, 3>(rows, count, x, acc);
    if (count > 16) return multiply_unit<width, group, 2>(rows, count, x, acc);
    return multiply_unit<width, group, 1>(rows, count, x, acc);
  });
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
