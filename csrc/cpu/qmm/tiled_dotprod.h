// qmm for the many rows of a prompt with NEON's dot products: tiled_avx2.h's way for vectors of 4 lanes and
// products of bytes.
//
// A unit is 16 weight rows, four vectors. A block of their columns is unpacked once for all rows of x, four weights a
// lane, [chunks][16 quads][16 rows][4], 8 KB that stay in L1. A register tile is 4 rows of x by 4 vectors: 16 SDOTs for
// 4 loads of weights; x comes as lanes, 16 columns a load. High bytes go first, so that their sums are moved up in
// place before the low ones join them.
#pragma once

#include "cpu/qmm/int16.h"

#if defined(MLX_DELTA_DOTPROD)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int kTiledRows = 16;  // weight rows of a unit
inline constexpr int kVectors = kTiledRows / W;

// A block of columns of one unit, unpacked.
struct TiledBlock {
  alignas(64) int8_t weights[kBlockColumns / 4][kTiledRows][4];
  alignas(64) float scales[kBlockColumns / kChunk][kTiledRows];
  alignas(64) float biases[kBlockColumns / kChunk][kTiledRows];
};

// out[i] = lane i of each of the 4 vectors of `rows`
inline void transpose_lanes(const int8x16_t* rows, int32x4_t* out) {
  int32x4_t a[4];
  MLX_DELTA_UNROLL
  for (int i = 0; i < 4; i += 2) {
    const int32x4_t even = vreinterpretq_s32_s8(rows[i]), odd = vreinterpretq_s32_s8(rows[i + 1]);
    a[i] = vtrn1q_s32(even, odd);
    a[i + 1] = vtrn2q_s32(even, odd);
  }
  const auto wide = [](int32x4_t x) { return vreinterpretq_s64_s32(x); };
  MLX_DELTA_UNROLL
  for (int i = 0; i < 2; ++i) {
    out[i] = vreinterpretq_s32_s64(vtrn1q_s64(wide(a[i]), wide(a[i + 2])));
    out[i + 2] = vreinterpretq_s32_s64(vtrn2q_s64(wide(a[i]), wide(a[i + 2])));
  }
}

// Chunks from .. to of `count` <= 16 rows from n on; the last row stands in for missing ones.
template <int bits, int group_size>
void unpack_block(const MatrixView& matrix, int64_t n, int64_t count, int64_t from, int64_t to, TiledBlock& block) {
  const Fields<bits> fields;
  for (int first = 0; first < kTiledRows; first += W)
    for (int64_t c = from; c < to; ++c) {
      int8x16_t f[4][W];
      for (int r = 0; r < W; ++r) {
        const PackedRow row = packed_row<bits, group_size>(matrix, n + least<int64_t>(first + r, count - 1));
        typename Fields<bits>::Chunk some;
        fields(row.data + c * 8 * bits, some);
        prefetch(row.data + (c + to - from) * 8 * bits);
        for (int j = 0; j < 4; ++j) f[j][r] = some[j];
        const float scale = to_float(row.scales[c * kChunk / group_size]);
        block.scales[c - from][first + r] = scale;
        block.biases[c - from][first + r] =
            bias_of<Fields<bits>::offset>(to_float(row.biases[c * kChunk / group_size]), scale);
      }
      for (int j = 0; j < 4; ++j) {
        int32x4_t lanes[4];
        transpose_lanes(f[j], lanes);
        for (int i = 0; i < 4; ++i)
          std::memcpy(block.weights[(c - from) * kChunk / 4 + 4 * j + i][first], &lanes[i], 16);
      }
    }
}

// acc[m][16] += chunks from .. to of a block times MR rows of x from m0 on.
template <int group_size, int MR>
void multiply_tile(const TiledBlock& block, int64_t from, int64_t to, const FixedX& x, int64_t m0, float* acc) {
  for (int64_t c = from; c < to; ++c) {
    const int8_t* values = reinterpret_cast<const int8_t*>(x.chunk(m0, c));
    const int8_t* w = block.weights[(c - from) * kChunk / 4][0];
    int32x4_t dot[MR][kVectors];
    MLX_DELTA_UNROLL
    for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
    for (int v = 0; v < kVectors; ++v) dot[m][v] = vdupq_n_s32(0);
    for (int plane = 0; plane < 2; ++plane) {
      for (int place = 0; place < kChunk; place += 16) {
        int8x16_t xm[MR];
        MLX_DELTA_UNROLL
        for (int m = 0; m < MR; ++m) xm[m] = vld1q_s8(values + m * 2 * kBlockColumns + plane * kChunk + place);
        const auto quad = [&](auto lane) __attribute__((always_inline)) {
          int8x16_t wv[kVectors];
          MLX_DELTA_UNROLL
          for (int v = 0; v < kVectors; ++v) wv[v] = vld1q_s8(w + (place / 4 + lane) * 4 * kTiledRows + 16 * v);
          MLX_DELTA_UNROLL
          for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
          for (int v = 0; v < kVectors; ++v) dot[m][v] = vdotq_laneq_s32(dot[m][v], wv[v], xm[m], lane);
        };
        quad(std::integral_constant<int, 0>{});
        quad(std::integral_constant<int, 1>{});
        quad(std::integral_constant<int, 2>{});
        quad(std::integral_constant<int, 3>{});
      }
      if (plane == 0) MLX_DELTA_UNROLL
      for (int m = 0; m < MR; ++m) MLX_DELTA_UNROLL
      for (int v = 0; v < kVectors; ++v) dot[m][v] = vshlq_n_s32(dot[m][v], 8);
    }
    const bool last_of_group = group_size == kChunk || c % 2 == 1;
    MLX_DELTA_UNROLL
    for (int m = 0; m < MR; ++m) {
      const float step = x.steps[(m0 + m) * x.step_stride + c];
      const float sum = last_of_group ? x.sums[(m0 + m) * x.sum_stride + c * kChunk / group_size] : 0.0f;
      MLX_DELTA_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        float* at = acc + m * kTiledRows + v * W;
        const F part = floats(I(dot[m][v])) * step;
        store(load(at) + load(block.scales[c - from] + v * W) * part + load(block.biases[c - from] + v * W) * sum, at);
      }
    }
  }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
