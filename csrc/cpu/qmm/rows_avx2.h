// Several rows of x in fixed point times packed weights with AVX2, in the bits of int16.h's one row.
//
// Two weight rows at a time: their 64 weights, 8 vectors, stay in registers while all rows of x pass, and each vector
// of x is loaded once for both. The fields come down to bit 0 when they are unpacked, once for all rows of x, so that
// their products add up without shifts: of 64 weights times a row of x 4 multiplications, 3 additions, a conversion
// and a multiply-add are left. The sums of a lane are the same integers.
#pragma once

#include "cpu/qmm/int16.h"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace mlx_delta::cpu::MLX_DELTA_ISA {

// factors[m][i] = scale of chunk from + i times the step of row m there, for `count` <= 8 chunks; rows of x whose
// number is a constant, `few`, are unrolled.
template <int group_size, int few = 0>
inline void scale_steps(const bf16* scales, int64_t from, int64_t count, const FixedX& x, float* factors) {
  F scale;
  if constexpr (group_size == kChunk) {
    scale = count == W ? load(scales + from) : load_part(scales + from, count);
  } else {
    for (int i = 0; i < W; ++i) scale[i] = i < count ? to_float(scales[(from + i) / 2]) : 0.0f;
  }
  const float* steps = x.steps + from;
  const int64_t M = x.M, stride = x.step_stride;
  if constexpr (few > 0) MLX_DELTA_UNROLL
  for (int m = 0; m < few; ++m) store(scale * load(steps + m * stride), factors + m * W);
  else for (int64_t m = 0; m < M; ++m, steps += stride, factors += W) store(scale * load(steps), factors);
}

// acc[r][m] (vectors) += chunks from .. from + count of R weight rows, of one block, times all rows of x;
// `ahead` of each, as much, is asked for.
template <int bits, int group_size, int R>
inline void multiply_block(const PackedRow* rows, int64_t from, int64_t count, const uint8_t* const* ahead,
                           const FixedX& x, float* factors, float* acc) {
  const Fields<bits> fields;
  const __m256i mask = _mm256_set1_epi16(Fields<bits>::low_field);
  const int64_t M = x.M, row_stride = M * W;
  const uint8_t* data[R];  // of the rows, in registers: a store to acc might change `rows`
  MLX_DELTA_UNROLL
  for (int r = 0; r < R; ++r) {
    data[r] = rows[r].data + from * 8 * bits;
    scale_steps<group_size>(rows[r].scales, from, count, x, factors + r * row_stride);
    MLX_DELTA_UNROLL
    for (int i = 0; i < bits; ++i) prefetch(ahead[r] + 64 * i);
  }
  const int16_t* first = x.chunk(0, from);
  for (int64_t c = 0; c < count; ++c) {
    __m256i f[R][4];
    MLX_DELTA_UNROLL
    for (int r = 0; r < R; ++r) {
      __m256i lanes[Fields<bits>::vectors];
      fields.lanes(data[r] + c * 8 * bits, lanes);
      Fields<bits>::apart(lanes, mask, f[r]);
    }
    const int16_t* values = first + c * kChunk;
    const float* factor = factors + c;
    float* at = acc;
    const auto some = [&](auto count_of_x) __attribute__((always_inline)) {
      constexpr int MR = decltype(count_of_x)::value;
      MLX_DELTA_UNROLL
      for (int m = 0; m < MR; ++m) {
        __m256i sums[R];
        MLX_DELTA_UNROLL
        for (int j = 0; j < 4; ++j) {
          __m256i xj = _mm256_load_si256(reinterpret_cast<const __m256i*>(values + m * kBlockColumns + 16 * j));
          if constexpr (R > 1) asm("" : "+x"(xj));  // or GCC loads it again for each row
          MLX_DELTA_UNROLL
          for (int r = 0; r < R; ++r) {
            const __m256i products = _mm256_madd_epi16(f[r][j], xj);
            sums[r] = j == 0 ? products : _mm256_add_epi32(sums[r], products);
          }
        }
        MLX_DELTA_UNROLL
        for (int r = 0; r < R; ++r) {
          const int64_t i = r * row_stride + m * W;
          store(load(at + i) + splat(factor[i]) * floats(I(sums[r])), at + i);
        }
      }
      values += MR * kBlockColumns;
      factor += MR * W;
      at += MR * W;
    };
    int64_t m = 0;
    for (; m + 4 <= M; m += 4) some(std::integral_constant<int, 4>{});
    if (M - m >= 2) some(std::integral_constant<int, 2>{});
    if (M % 2 == 1) some(std::integral_constant<int, 1>{});
  }
}

inline constexpr int kFinished = 4;  // weight rows that are finished at a time

// out[m * kUnitRows + r] = the sum of the lanes of acc[r][m] + sum_g bias_g sum_g, for R weight rows, as int16.h's
// finish_row adds it. The biases become floats once for all rows of x.
template <int R>
void finish_rows(const PackedRow* rows, int64_t groups, const FixedX& x, float* biases, const float* acc, float* out) {
  const int64_t M = x.M, stride = (groups + W - 1) / W * W;
  for (int r = 0; r < R; ++r) {
    load_floats(rows[r].biases, groups, biases + r * stride);
    fill(biases + r * stride + groups, stride - groups, 0.0f);
  }
  for (int64_t m = 0; m < M; ++m) {
    F total[R];
    MLX_DELTA_UNROLL
    for (int r = 0; r < R; ++r) total[r] = load(acc + (r * M + m) * W);
    const float* sums = x.sums + m * x.sum_stride;
    for (int64_t g = 0; g < groups; g += W) {
      const F of_groups = g + W <= groups ? load(sums + g) : load_part(sums + g, groups - g);
      MLX_DELTA_UNROLL
      for (int r = 0; r < R; ++r) total[r] += load(biases + r * stride + g) * of_groups;
    }
    MLX_DELTA_UNROLL
    for (int r = 0; r < R; ++r) out[m * kUnitRows + r] = sum(total[r]);
  }
}

// out[unit, m, r] of a run of `count` weight rows, from their sums acc[r][m].
inline void finish_run(const PackedRow* rows, int64_t count, int64_t groups, const FixedX& x, float* biases,
                       const float* acc, float* out) {
  const int64_t M = x.M;
  const auto finish = [&](int64_t r, auto weight_rows) {
    finish_rows<decltype(weight_rows)::value>(rows + r, groups, x, biases, acc + r * M * W,
                                              out + r / kUnitRows * kUnitRows * M + r % kUnitRows);
  };
  int64_t r = 0;
  for (; r + kFinished <= count; r += kFinished) finish(r, std::integral_constant<int, kFinished>{});
  for (; r < count; ++r) finish(r, std::integral_constant<int, 1>{});
}

using MultiplyBlock = void (*)(const PackedRow*, int64_t, int64_t, const uint8_t* const*, const FixedX&, float*,
                               float*);

// out[unit, m, r]: rows n .. n + count of the matrix times all rows of x, two and one at a time; then `next` is read.
inline void multiply_run_by(MultiplyBlock two, MultiplyBlock one, const MatrixView& matrix, int64_t n, int64_t count,
                            RowOf next, const FixedX& x, float* out) {
  const int64_t M = x.M, chunks = matrix.cols / kChunk, groups = matrix.cols / matrix.group_size;
  const int64_t of_groups = (groups + W - 1) / W * W;
  float* acc = scratch_of<float>(4, count * M * W + 2 * M * W + kFinished * of_groups);
  float* factors = acc + count * M * W;
  float* biases = factors + 2 * M * W;
  fill(acc, count * M * W, 0.0f);
  PackedRow rows[kRunRows], after[kRunRows];
  for (int64_t r = 0; r < count; ++r) {
    rows[r] = packed_row(matrix, n + r);
    after[r] = packed_row(*next.matrix, next.row + r);
  }
  constexpr int64_t block = kBlockColumns / kChunk;
  for (int64_t from = 0; from < chunks; from += block) {
    const int64_t in_block = least(block, chunks - from);
    const bool last = from + in_block == chunks;
    const auto some = [&](int64_t r, auto weight_rows) {
      constexpr int R = decltype(weight_rows)::value;
      const uint8_t* ahead[R];
      for (int i = 0; i < R; ++i) {
        ahead[i] = last ? after[r + i].data : rows[r + i].data + (from + in_block) * 8 * matrix.bits;
        if (!last) continue;
        prefetch_values(after[r + i].scales, groups);
        prefetch_values(after[r + i].biases, groups);
      }
      (R == 2 ? two : one)(rows + r, from, in_block, ahead, x, factors, acc + r * M * W);
    };
    int64_t r = 0;
    for (; r + 2 <= count; r += 2) some(r, std::integral_constant<int, 2>{});
    if (r < count) some(r, std::integral_constant<int, 1>{});
  }
  finish_run(rows, count, groups, x, biases, acc, out);
}

template <int bits, int group_size>
void multiply_run(const MatrixView& matrix, int64_t n, int64_t count, RowOf next, const FixedX& x, float* out) {
  multiply_run_by(multiply_block<bits, group_size, 2>, multiply_block<bits, group_size, 1>, matrix, n, count, next, x,
                  out);
}

}  // namespace mlx_delta::cpu::MLX_DELTA_ISA

#endif
