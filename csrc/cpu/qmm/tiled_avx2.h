// qmm for the many rows of a prompt with AVX2: strips_avx512.h's way for vectors of 8 lanes and 16-bit products.
//
// A unit is 16 weight rows, two vectors. A block of their columns is unpacked once for all rows of x into 16-bit pairs,
// [chunks][32 pairs][16 rows][2], 16 KB that stay in L1. A register tile is 4 rows of x by 2 vectors: 8 multiplications
// and 8 additions for 2 loads of weights and 4 broadcasts of x.
#pragma once

#include "cpu/qmm/int16.h"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

inline constexpr int kTiledRows = 16;  // weight rows of a unit
inline constexpr int kPairs = kChunk / 2;

// A block of columns of one unit, unpacked.
struct TiledBlock {
  alignas(32) int16_t weights[kBlockColumns / 2][kTiledRows][2];
  alignas(32) float scales[kBlockColumns / kChunk][kTiledRows];
  alignas(32) float biases[kBlockColumns / kChunk][kTiledRows];
};

// out[i] = lane i of each of the 8 vectors of `rows`
inline void transpose_lanes(const __m256i* rows, __m256i* out) {
  __m256i a[8], b[8];
  MLX_DELTA_UNROLL
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
    a[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  MLX_DELTA_UNROLL
  for (int i = 0; i < 8; i += 4) MLX_DELTA_UNROLL
  for (int j = 0; j < 2; ++j) {
    b[i + 2 * j] = _mm256_unpacklo_epi64(a[i + j], a[i + j + 2]);
    b[i + 2 * j + 1] = _mm256_unpackhi_epi64(a[i + j], a[i + j + 2]);
  }
  MLX_DELTA_UNROLL
  for (int j = 0; j < 4; ++j) {
    out[j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x20);
    out[4 + j] = _mm256_permute2x128_si256(b[j], b[4 + j], 0x31);
  }
}

// Chunks from .. to of `count` <= 16 rows from n on; the last row stands in for missing ones.
template <int bits, int group_size>
void unpack_block(const MatrixView& matrix, int64_t n, int64_t count, int64_t from, int64_t to, TiledBlock& block) {
  const Fields<bits> fields;
  const __m256i mask = _mm256_set1_epi16(Fields<bits>::low_field);
  for (int half = 0; half < 2; ++half)
    for (int64_t c = from; c < to; ++c) {
      __m256i f[4][8];
      for (int r = 0; r < 8; ++r) {
        const PackedRow row = packed_row<bits, group_size>(matrix, n + least<int64_t>(8 * half + r, count - 1));
        __m256i lanes[Fields<bits>::vectors], some[4];
        fields.lanes(row.data + c * 8 * bits, lanes);
        Fields<bits>::apart(lanes, mask, some);
        prefetch(row.data + (c + to - from) * 8 * bits);
        for (int j = 0; j < 4; ++j) f[j][r] = some[j];
        block.scales[c - from][8 * half + r] = to_float(row.scales[c * kChunk / group_size]);
        block.biases[c - from][8 * half + r] = to_float(row.biases[c * kChunk / group_size]);
      }
      for (int j = 0; j < 4; ++j) {
        __m256i pairs[8];
        transpose_lanes(f[j], pairs);
        for (int i = 0; i < 8; ++i)
          _mm256_store_si256(reinterpret_cast<__m256i*>(block.weights[(c - from) * kPairs + 8 * j + i][8 * half]),
                             pairs[i]);
      }
    }
}

// acc[m][16] += chunks from .. to of a block times MR rows of x from m0 on.
template <int group_size, int MR>
void multiply_tile(const TiledBlock& block, int64_t from, int64_t to, const FixedX& x, int64_t m0, float* acc) {
  for (int64_t c = from; c < to; ++c) {
    const int16_t* values = x.chunk(m0, c);
    const int16_t* w = block.weights[(c - from) * kPairs][0];
    __m256i dot[MR][2];
    MLX_DELTA_UNROLL
    for (int m = 0; m < MR; ++m) dot[m][0] = dot[m][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int pair = 0; pair < kPairs; ++pair) {
      asm volatile("" ::: "memory");  // or GCC loads the weights of all four first, and spills them
      const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + pair * 2 * kTiledRows));
      __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + pair * 2 * kTiledRows + 16));
      asm("" : "+x"(w1));  // or GCC loads it again for each row
      MLX_DELTA_UNROLL
      for (int m = 0; m < MR; ++m) {
        int32_t two;
        std::memcpy(&two, values + m * kBlockColumns + 2 * pair, 4);
        const __m256i xm = _mm256_set1_epi32(two);
        dot[m][0] = _mm256_add_epi32(dot[m][0], _mm256_madd_epi16(w0, xm));
        dot[m][1] = _mm256_add_epi32(dot[m][1], _mm256_madd_epi16(w1, xm));
      }
    }
    const bool last_of_group = group_size == kChunk || c % 2 == 1;
    MLX_DELTA_UNROLL
    for (int m = 0; m < MR; ++m) {
      const float step = x.steps[(m0 + m) * x.step_stride + c];
      const float sum = last_of_group ? x.sums[(m0 + m) * x.sum_stride + c * kChunk / group_size] : 0.0f;
      MLX_DELTA_UNROLL
      for (int v = 0; v < 2; ++v) {
        float* at = acc + m * kTiledRows + v * W;
        const F part = F(_mm256_cvtepi32_ps(dot[m][v])) * step;
        store(load(at) + load(block.scales[c - from] + v * W) * part + load(block.biases[c - from] + v * W) * sum, at);
      }
    }
  }
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
